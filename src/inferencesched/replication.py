"""What do several gateways before the same servers tell each other, so that they decide as one?

Each has its own pool, index and counters, and decides alone: a peer is never asked. What it did since the last time goes out as a delta,
bytes that any transport may carry, lose, repeat or mix up (`adapters.redis` carries them over a Redis stream). Merging is associative,
commutative and idempotent:

==================  ====================================================  =========================================================
what                how it is said                                        how it merges
==================  ====================================================  =========================================================
load                each origin's own bookings, all of them, an endpoint  the newest of each origin; nobody's after some silence
prefixes            whole chains of block hashes, an endpoint             a union; each index ages them as its own
quotas              each origin's own counters, what they are by now      the newest of each origin's every life, summed
==================  ====================================================  =========================================================

What does not converge: limits of rate (`RateLimiter`; give each gateway its share), the queues (each keeps its own fairness), what the servers
say of themselves (each asks them). A lost delta of prefixes is a lost hit; of the others, the next one heals it.
"""

from collections import deque
from collections.abc import Sequence
from math import inf
from typing import Final, NamedTuple, final

import msgspec
import numpy as np

from inferencesched._typing import FloatArray, HashArray
from inferencesched.endpoints import (
    CONTEXT_TOKENS,
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    LAST_PICKED,
    Endpoints,
    Signal,
)
from inferencesched.errors import DeltaError, InvalidInputError, duration, whole_number
from inferencesched.framework import CycleState, Produced, SchedulingResult
from inferencesched.members import Membership
from inferencesched.pool import InferencePool
from inferencesched.prefix.producer import ApproximatePrefixProducer, PrefixReceipt
from inferencesched.request import InferenceRequest

_LOADS: Final = (INFLIGHT_REQUESTS, INFLIGHT_TOKENS, CONTEXT_TOKENS)
_VERSION: Final = 1


class _Chain(msgspec.Struct, array_like=True, frozen=True):
    """A prompt went there. ``kind`` names block size and seed: other hashes mean nothing here."""

    pool: str
    endpoint: str
    kind: str
    hashes: bytes


class _Counter(msgspec.Struct, array_like=True, frozen=True):
    """What has an origin counted in a window so far?"""

    name: str
    window: int
    used: int
    lasts: float


class _Delta(msgspec.Struct, array_like=True, frozen=True):
    """What has an origin done?"""

    version: int
    origin: str
    life: int
    number: int
    loads: dict[str, dict[str, tuple[int, int, int]]] | None
    chains: list[_Chain]
    counters: list[_Counter]


_ENCODE: Final = msgspec.msgpack.Encoder()
_DECODE: Final = msgspec.msgpack.Decoder(_Delta)


class Merged(NamedTuple):
    """What was new in a delta? ``origin`` is empty for one's own and for one that was merged before."""

    origin: str = ""
    loads: bool = False
    prefixes: int = 0
    counters: int = 0
    foreign: int = 0


@final
class SharedQuotas:
    """How much have all of us used? A `QuotaStore` of one's own counters, and the peers' as they told them last.

    Between two deltas a quota may be overdrawn by what the others have let in meanwhile: at most their rate times the delay.
    """

    __slots__ = ("_changed", "_lasts", "_mine", "_theirs")

    def __init__(self) -> None:
        self._mine: dict[tuple[str, int], int] = {}
        self._lasts: dict[tuple[str, int], float] = {}
        self._changed: dict[tuple[str, int], None] = {}
        self._theirs: dict[
            tuple[str, int], dict[tuple[str, int], tuple[int, int]]
        ] = {}  # by (origin, life): (number, used)

    def __len__(self) -> int:
        """How many counters are kept?"""
        return len(self._lasts)

    def used(self, name: str, windows: Sequence[int]) -> list[int]:
        """Return the counters of these windows, everybody's, 0 for unknown ones."""
        mine, theirs = self._mine, self._theirs
        sums = []
        for window in windows:
            key = name, window
            others = theirs.get(key)
            sums.append(mine.get(key, 0) + (sum(used for _, used in others.values()) if others else 0))
        return sums

    def add(self, changes: Sequence[tuple[str, int, int]], expires_at: float) -> None:
        """Add to several counters of one's own."""
        for name, window, amount in changes:
            key = name, window
            self._mine[key] = self._mine.get(key, 0) + amount
            self._lasts[key] = max(expires_at, self._lasts.get(key, -inf))
            self._changed[key] = None

    def sweep(self, now: float) -> int:
        """Forget counters that nobody asks for any more; return how many. `now` is on the clock of the quotas."""
        gone = [key for key, at in self._lasts.items() if at <= now]
        for key in gone:
            del self._lasts[key]
            for kept in (self._mine, self._changed, self._theirs):
                kept.pop(key, None)
        return len(gone)

    def said(self, *, everything: bool) -> list[_Counter]:
        """Return one's own counters, all or what has changed since they were said last."""
        keys = list(self._mine if everything else self._changed)
        self._changed.clear()
        return [_Counter(*key, self._mine[key], self._lasts[key]) for key in keys]

    def hear(self, origin: str, life: int, number: int, counter: _Counter) -> bool:
        """Take a peer's counter; return whether it is news."""
        key = counter.name, counter.window
        told = self._theirs.setdefault(key, {})
        before = told.get((origin, life))
        if before is not None and before[0] >= number:
            return False
        told[origin, life] = number, counter.used
        self._lasts[key] = max(counter.lasts, self._lasts.get(key, -inf))
        return before is None or before[1] != counter.used


class _Peer:
    """What is known of another gateway?"""

    __slots__ = ("heard", "life", "loads", "number", "numbers")

    def __init__(self, life: int) -> None:
        self.life = life
        self.number = -1  # of the loads
        self.numbers: deque[int] = deque(maxlen=4096)  # of what was merged lately
        self.loads: dict[str, dict[str, tuple[int, int, int]]] = {}
        self.heard = -inf


@final
class PeerLoads:
    """How busy is each endpoint, with what the other gateways have sent there? A `DataProducer`; `Replica.watch` makes it.

    Fills the columns of what is in flight, one's own bookings and the peers', and of who was picked last, by whomever: so that several
    gateways go round in turn as one does. Hears of each decision, for the peers' indices.
    Cost at 64 endpoints: 0.5 us while no peer has been heard, 4 us else.
    """

    __slots__ = ("_members", "_picked", "_picks", "_prefix", "_remote", "_replica", "_since", "_told", "name", "pool")

    def __init__(
        self, replica: "Replica", name: str, pool: InferencePool, prefix: ApproximatePrefixProducer | None
    ) -> None:
        self._replica = replica
        self._prefix = prefix
        self.name = name
        self.pool = pool
        self._members: Membership | None = None
        self._told = -1
        self._remote: FloatArray | None = None
        self._picked: dict[str, float] = {}  # by the peers, on the count of one's own picks
        self._since = self._picks = 0

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (*_LOADS, LAST_PICKED)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[None]:
        """Return the columns of what is in flight, everybody's."""
        remote = self._loads(endpoints.members)
        if remote is None:
            return Produced({}, None)
        here = remote if endpoints.positions is None else remote[:, endpoints.positions]
        columns = {signal: endpoints[signal] + here[i] for i, signal in enumerate(_LOADS)}
        columns[LAST_PICKED] = np.maximum(endpoints[LAST_PICKED], here[-1])
        return Produced(columns, None, True)

    def commit(self, receipt: None, slot: int, *, now: float) -> None:
        """Nothing: `decided` knows more."""

    def decided(self, receipt: None, result: SchedulingResult, *, now: float) -> None:
        """Note for the peers where a prompt went."""
        prefix = self._prefix
        if prefix is None:
            return
        for each in result.receipts:
            if type(each) is PrefixReceipt and each.hashes is not None and len(each.hashes):
                self._replica._went(self.name, result.target.endpoint, _kind_of(prefix), each.hashes)
                return

    def picked(self, endpoint: str) -> None:
        """Note that a peer sent somebody there: after all that was picked here, before all that will be."""
        since = self.pool.sequence
        self._picks = self._picks + 1 if since == self._since else 1
        self._since = since
        self._picked[endpoint] = since - 1.0 / (1.0 + self._picks)
        self._replica.version += 1

    def hear(self, endpoint: str, kind: str, hashes: HashArray, now: float) -> bool:
        """Learn where a peer sent a prompt; return whether it means anything here."""
        prefix = self._prefix
        if prefix is None or kind != _kind_of(prefix):
            return False
        return prefix.learn(hashes, self.pool.snapshot(), endpoint, now=now)

    def mine(self) -> dict[str, tuple[int, int, int]]:
        """Return what is booked from here, by endpoint; nobody who has nothing."""
        endpoints = self.pool.snapshot()
        rows = np.stack([endpoints[signal] for signal in _LOADS]).astype(np.int64)
        return {
            endpoints.names[i]: (int(rows[0, i]), int(rows[1, i]), int(rows[2, i]))
            for i in np.flatnonzero(rows.any(axis=0)).tolist()
        }

    def _loads(self, members: Membership) -> FloatArray | None:
        """Return the peers' loads of these endpoints and their last picks, ``float64[4, members]``; None where there are none."""
        replica = self._replica
        if self._told != replica.version or self._members is not members:
            self._told, self._members = replica.version, members
            found: FloatArray | None = None
            told = [load for peer in replica._peers.values() for load in peer.loads.get(self.name, {}).items()]
            if told or self._picked:
                found = np.zeros((len(_LOADS) + 1, len(members.names)))
                found[-1] = -1.0
                for endpoint, load in told:
                    position = members.positions.get(endpoint)
                    if position is not None:
                        found[:-1, position] += load
                for endpoint, at in self._picked.items():
                    position = members.positions.get(endpoint)
                    if position is not None:
                        found[-1, position] = at
            self._remote = found
        return self._remote


@final
class Replica:
    """What do we tell the other gateways, and what have they told us?

    Parameters
    ----------
    origin: this gateway's name, of nobody else.
    life: which life of it this is; a later one is larger (the time of day when it started, say). A gateway that starts again with the same
        name and a larger life is the same one, empty-handed.
    silence: seconds after which what a peer has in flight counts no more.
    heartbeat: seconds after which loads are said again though nothing has changed; below `silence`.
    refresh: seconds after which all quotas are said again.
    most_chains: prompts that wait to be said; more, and the oldest go unsaid.
    most_blocks: of a prompt that are said.

    Not safe from several threads but for the producers it makes. No transport, no clock. Cost with 64 busy endpoints: 43 us a `delta` of
    0.6 KB, 11 us a `merge`, and 8 bytes a block of the prompts that went out since. Errors: `InvalidInputError`.

    >>> from inferencesched import InferencePool, InferenceRequest, Scheduler, default_profile
    >>> def gateway(name):
    ...     replica, pool, prefix = Replica(name, life=1), InferencePool(), ApproximatePrefixProducer(block_size=4, seed=7)
    ...     pool.join("ep-0"), pool.join("ep-1")
    ...     peers = replica.watch("llama", pool, prefix)
    ...     return replica, pool, Scheduler(default_profile(), producers=(prefix, peers))
    >>> (one, pool, ours), (two, theirs, scheduler) = gateway("one"), gateway("two")
    >>> request = InferenceRequest(request_id="r", tokens=np.arange(64, dtype=np.uint32))
    >>> ours.schedule_and_reserve(request, pool, now=1.0, rng=np.random.default_rng(7)).endpoint
    'ep-1'
    >>> two.merge(one.delta(now=1.0), now=1.1)
    Merged(origin='one', loads=True, prefixes=1, counters=0, foreign=0)
    >>> scheduler.schedule(request, theirs.snapshot(), now=1.2, rng=np.random.default_rng(1)).endpoint
    'ep-1'
    """

    def __init__(
        self,
        origin: str,
        *,
        life: int,
        silence: float = 5.0,
        heartbeat: float = 1.0,
        refresh: float = 30.0,
        most_chains: int = 4096,
        most_blocks: int = 4096,
    ) -> None:
        if not origin:
            raise InvalidInputError("origin", origin, "a name that is not empty")
        whole_number("life", life)
        for name, value in (("silence", silence), ("heartbeat", heartbeat), ("refresh", refresh)):
            duration(name, value)
        if heartbeat >= silence:
            raise InvalidInputError("heartbeat", heartbeat, f"less than silence ({silence})")
        whole_number("most_chains", most_chains, 1)
        whole_number("most_blocks", most_blocks, 1)
        self.origin = origin
        self.life = life
        self.quotas = SharedQuotas()
        #: Grows with everything that changes what peers have in flight.
        self.version = 0
        #: Prompts that went unsaid because too many waited.
        self.unsaid = 0
        self._silence = silence
        self._heartbeat = heartbeat
        self._refresh = refresh
        self._most_blocks = most_blocks
        self._number = 0
        self._watched: dict[str, PeerLoads] = {}
        self._chains: deque[_Chain] = deque(maxlen=most_chains)
        self._said: dict[str, dict[str, tuple[int, int, int]]] = {}
        self._beat = self._all = -inf
        self._peers: dict[str, _Peer] = {}

    def watch(self, name: str, pool: InferencePool, prefix: ApproximatePrefixProducer | None = None) -> PeerLoads:
        """Share a pool under a name that all gateways give it; return the producer that its scheduler needs.

        `prefix` is that scheduler's prefix producer; its block size and seed must be everybody's. Errors: `InvalidInputError` for a
        name that is taken.
        """
        if name in self._watched:
            raise InvalidInputError("name", name, "a pool that is not watched yet")
        self._watched[name] = watched = PeerLoads(self, name, pool, prefix)
        return watched

    def delta(self, *, now: float) -> bytes | None:
        """Return what the peers do not know yet; None for nothing. It is said then: keep the bytes until they are delivered."""
        loads = {name: each.mine() for name, each in self._watched.items()}
        due = now - self._beat >= self._heartbeat
        everything = now - self._all >= self._refresh
        counters = self.quotas.said(everything=everything)
        if not (due or self._chains or counters or loads != self._said):
            return None
        said = None if loads == self._said and not due else loads
        if said is not None:
            self._said, self._beat = loads, now
        if everything:
            self._all = now
        chains = list(self._chains)
        self._chains.clear()
        self._number += 1
        return _ENCODE.encode(_Delta(_VERSION, self.origin, self.life, self._number, said, chains, counters))

    def merge(self, data: bytes, *, now: float) -> Merged:
        """Take a delta, whoever said it, whenever, however often. Errors: `DeltaError` for bytes that are none, and nothing is taken."""
        try:
            delta = _DECODE.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DeltaError("data", f"{len(data)} bytes ({error})", "a delta") from error
        if delta.version != _VERSION:
            raise DeltaError("version", delta.version, f"{_VERSION}")
        if any(len(chain.hashes) % 8 for chain in delta.chains):
            raise DeltaError("hashes", "a chain that is cut off", "eight bytes a block")
        if delta.origin == self.origin:
            return Merged()
        peer = self._peers.get(delta.origin)
        if peer is None or peer.life < delta.life:
            self._peers[delta.origin] = peer = _Peer(delta.life)
            self.version += 1
        current = peer.life == delta.life
        if current:
            peer.heard = now
            if delta.number in peer.numbers:
                return Merged()
            peer.numbers.append(delta.number)
        news = current and delta.loads is not None and delta.number > peer.number
        if news and delta.loads is not None:
            if delta.loads != peer.loads:
                self.version += 1
            peer.loads, peer.number = delta.loads, delta.number
        heard = foreign = 0
        for chain in delta.chains:
            watched = self._watched.get(chain.pool)
            hashes = np.frombuffer(chain.hashes, dtype="<u8").astype(np.uint64, copy=False)
            if watched is not None and current:
                watched.picked(chain.endpoint)
            if watched is not None and len(hashes) and watched.hear(chain.endpoint, chain.kind, hashes, now):
                heard += 1
            else:
                foreign += 1
        counters = sum(self.quotas.hear(delta.origin, delta.life, delta.number, counter) for counter in delta.counters)
        return Merged(delta.origin, news, heard, counters, foreign)

    def expire(self, *, now: float) -> list[str]:
        """Forget what silent peers have in flight; return their names. What they have used of quotas stays used."""
        silent = [name for name, peer in self._peers.items() if now - peer.heard > self._silence]
        for name in silent:
            del self._peers[name]
        if silent:
            self.version += 1
        return silent

    def peers(self, *, now: float) -> dict[str, float]:
        """How many seconds ago was each peer heard?"""
        return {name: now - peer.heard for name, peer in self._peers.items()}

    def load_of(self, pool: str, endpoint: str) -> tuple[int, int, int]:
        """How much have the peers in flight there: requests, tokens to compute, tokens of context?"""
        told = [peer.loads.get(pool, {}).get(endpoint, (0, 0, 0)) for peer in self._peers.values()]
        return (sum(load[0] for load in told), sum(load[1] for load in told), sum(load[2] for load in told))

    def check(self) -> None:
        """Raise `AssertionError` unless what is cached agrees with what was told."""
        for name, watched in self._watched.items():
            endpoints = watched.pool.snapshot()
            remote = watched._loads(endpoints.members)
            for i, endpoint in enumerate(endpoints.names):
                mine = (0.0, 0.0, 0.0) if remote is None else tuple(remote[:-1, i].tolist())
                assert mine == self.load_of(name, endpoint), (name, endpoint, mine)
        assert all(peer.number <= max(peer.numbers, default=-1) for peer in self._peers.values())

    def _went(self, pool: str, endpoint: str, kind: str, hashes: HashArray) -> None:
        if len(self._chains) == self._chains.maxlen:
            self.unsaid += 1
        said = np.ascontiguousarray(hashes[: self._most_blocks], dtype="<u8")
        self._chains.append(_Chain(pool, endpoint, kind, said.tobytes()))


def _kind_of(prefix: ApproximatePrefixProducer) -> str:
    """Return what two indices must have in common for their hashes to mean the same."""
    return f"{prefix.block_size}:{prefix.seed}"
