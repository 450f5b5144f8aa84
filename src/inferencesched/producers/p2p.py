"""From whom should a server fetch a prompt's blocks, rather than compute them again?

Servers that can read each other's offloaded blocks need to be told whose. Every server with nearly the longest prefix
will do; drawn by their queues, they share the transfers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import PREFIX_TOKENS, WAITING_QUEUE_SIZE, Endpoints, Signal
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.framework import CycleState, Produced, Reads, SchedulingResult
from inferencesched.normalize import known
from inferencesched.request import InferenceRequest
from inferencesched.signals import CACHED_BLOCKS, READABLE_BLOCKS, of_producer

#: Which header tells the server whose blocks to fetch, ``host:port``.
SOURCE_HEADER: Final = "x-kv-cache-source-host-port"


def fnv1a32(text: str) -> int:
    """Which number does a name stand for? FNV-1a of its UTF-8 bytes, 32 bits.

    >>> hex(fnv1a32("")), hex(fnv1a32("a")), hex(fnv1a32("foobar"))
    ('0x811c9dc5', '0xe40c292c', '0xbf9cf968')
    """
    number = 0x811C9DC5
    for byte in text.encode():
        number = (number ^ byte) * 0x01000193 & 0xFFFFFFFF
    return number


class Source(NamedTuple):
    """Whose blocks are to be fetched? `tokens` are those of the prompt that can be read there."""

    endpoint: str
    slot: int
    address: str
    tokens: int


class SourceReceipt(NamedTuple):
    """Which source was drawn, what has each candidate itself, and when is fetching worth it?

    ``source`` is None where nobody has anything that can be read; ``cached`` float64[E] are the tokens each of the
    ``endpoints`` holds, on any tier.
    """

    source: Source | None
    cached: FloatArray
    endpoints: Endpoints
    policy: "P2PSource"

    def held(self, slot: int) -> float:
        """Return how many tokens of the prompt the endpoint of this slot holds; 0 where nobody knows."""
        places = np.flatnonzero(self.endpoints.slots == slot)
        return float(self.cached[places[0]]) if len(places) else 0.0


@dataclass(frozen=True, slots=True)
class P2PSource:
    """Which endpoint should another one fetch this prompt's first blocks from?

    Candidates are those that have within one block of the most that can be read anywhere; one of them is drawn with the
    chances ``1 / (1 + queue)``, at ``fnv1a32(request_id) / 2**32``, in the order of their names: the same request draws
    the same source, whatever the order of the endpoints. An unknown queue counts as the longest of the candidates'.

    Fills no column: `source_headers` makes the header of it once the decision is made. Reads ``CACHED_BLOCKS`` (cycle; a prefix producer's with
    ``count_blocks``) and, where somebody tells tiers apart, ``READABLE_BLOCKS``, which then decides what can be fetched: an endpoint that has the
    prompt in its accelerator's memory only is no source, nor is one that it was merely sent to. Reads ``PREFIX_TOKENS``
    (cycle) for the size of a block, and ``WAITING_QUEUE_SIZE`` (scraped).

    Parameters
    ----------
    min_cached_token_delta: how many tokens more the source must have than the endpoint that computes the prompt; below,
        computing is as good.
    prefill_profile_name: which profile's target computes the prompt, where it ran; the primary's else.
    producer: whose counts are read, where several producers fill them.

    Stateless. Cost: some 20 us. Errors: `InvalidInputError` for a delta below 1, and for no name of a profile.
    Source: llm-d router's ``p2p-source-producer``.
    """

    min_cached_token_delta: int = 1
    prefill_profile_name: str = "prefill"
    producer: str = ""

    def __post_init__(self) -> None:
        whole_number("min_cached_token_delta", self.min_cached_token_delta, low=1)
        if not self.prefill_profile_name:
            raise InvalidInputError("prefill_profile_name", self.prefill_profile_name, "a string that is not empty")

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill? None."""
        return ()

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns does it read?"""
        return (
            Reads(of_producer(CACHED_BLOCKS, self.producer)),
            Reads(of_producer(PREFIX_TOKENS, self.producer)),
            Reads(of_producer(READABLE_BLOCKS, self.producer), required=False),
            Reads(WAITING_QUEUE_SIZE, "lower"),
        )

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[SourceReceipt]:
        """Return no column, and the source as the receipt."""
        cached = known(endpoints[of_producer(CACHED_BLOCKS, self.producer)])
        tokens = known(endpoints[of_producer(PREFIX_TOKENS, self.producer)])
        readable, tiers = cached, of_producer(READABLE_BLOCKS, self.producer)
        if tiers.name in endpoints.layout.rows:
            told = endpoints[tiers]
            readable = np.where(np.isnan(told), cached, told)
        position = draw(request.request_id, readable, endpoints)
        source = None
        if position >= 0:
            size = tokens[position] / cached[position] if cached[position] else 0.0
            slot, _ = endpoints.stay(position)
            whole = round(float(readable[position] * size))
            source = Source(endpoints.name(position), slot, endpoints.address(position), whole)
        return Produced({}, SourceReceipt(source, tokens, endpoints, self))

    def commit(self, receipt: SourceReceipt, slot: int, *, now: float) -> None:
        """Learn nothing: what was drawn is in the receipt."""

    def headers(self, receipt: SourceReceipt, result: SchedulingResult) -> dict[str, str]:
        """Return the header for this decision; empty says "remove what the client sent"."""
        picked = result.profiles.get(self.prefill_profile_name)
        computing = picked.target if picked is not None and picked.targets else result.target
        source = receipt.source
        worth = (
            source is not None
            and source.slot != computing.slot
            and source.tokens - receipt.held(computing.slot) >= self.min_cached_token_delta
        )
        return {SOURCE_HEADER: source.address if worth and source is not None else ""}


def draw(name: str, readable: FloatArray, endpoints: Endpoints) -> int:
    """Return the position of the source of blocks for a request of this name, -1 where nobody has one to read."""
    most = float(readable.max(initial=0.0))
    if most < 1.0:
        return -1
    near = np.flatnonzero((readable >= 1.0) & (readable >= most - 1.0)).tolist()
    if len(near) == 1:
        return int(near[0])
    near.sort(key=endpoints.name)
    queues = endpoints[WAITING_QUEUE_SIZE][near]
    queues = np.where(np.isnan(queues), np.fmax.reduce(queues), queues)
    shares = np.cumsum(1.0 / (1.0 + known(queues)))
    at = int(np.searchsorted(shares, fnv1a32(name) / 2.0**32 * shares[-1], side="right"))
    return int(near[min(at, len(near) - 1)])


def source_headers(result: SchedulingResult) -> Mapping[str, str]:
    """Which header tells the server that computes the prompt whose blocks to fetch?

    Pure: made of the result alone, whose receipts hold what a `P2PSource` drew; nothing without one. Set these beside
    ``result.headers``. An empty value says "remove it": a client must not name a source.

    >>> import inferencesched as isched
    >>> pool = isched.InferencePool()
    >>> for name, queue in (("a", 9), ("b", 0)):
    ...     pool.join(name, address=f"{name}:8000")
    ...     pool.observe(name, {WAITING_QUEUE_SIZE: queue}, now=0.0)
    >>> producers = (isched.ApproximatePrefixProducer(block_size=4, count_blocks=True), P2PSource())
    >>> profile = isched.SchedulingProfile(isched.MaxScorePicker(), (isched.WeightedScorer(isched.QueueScorer()),))
    >>> scheduler, rng = isched.Scheduler(profile, producers=producers), np.random.default_rng(1)
    >>> request = InferenceRequest(request_id="r-1", tokens=np.arange(16, dtype=np.uint32))
    >>> cold = scheduler.schedule(request, pool.snapshot(), now=0.0, rng=rng)
    >>> cold.endpoint, dict(source_headers(cold))
    ('b', {'x-kv-cache-source-host-port': ''})
    >>> _ = scheduler.reserve(cold, pool, now=0.0)
    >>> pool.observe("b", {WAITING_QUEUE_SIZE: 20}, now=0.1)
    >>> warm = scheduler.schedule(request, pool.snapshot(), now=0.1, rng=rng)
    >>> warm.endpoint, dict(source_headers(warm))
    ('a', {'x-kv-cache-source-host-port': 'b:8000'})
    """
    found: dict[str, str] = {}
    for receipt in result.receipts:
        if isinstance(receipt, SourceReceipt):
            found.update(receipt.policy.headers(receipt, result))
    return found
