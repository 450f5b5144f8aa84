"""To which endpoints does a key belong, whoever asks and whoever else is there?

Rendezvous hashing: every endpoint draws a number for the key, and the greatest wins. A draw depends on the key and the
endpoint's name alone, so all gateways agree without talking, and only the keys of an endpoint that leaves move.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from math import isfinite
from typing import Literal, get_args

import numpy as np
import xxhash

from inferencesched._kernels._compile import entry
from inferencesched._kernels.placement import heights
from inferencesched._typing import BoolArray, FloatArray, HashArray, IndexArray
from inferencesched.endpoints import CAPACITY_WEIGHT, INFLIGHT_REQUESTS, Endpoints
from inferencesched.errors import InvalidInputError, UnknownNameError, whole_number
from inferencesched.request import InferenceRequest

KeySource = Literal["session", "adapter", "model", "tenant", "fairness", "prefix", "header"]


@dataclass(frozen=True, slots=True)
class RequestKey:
    """By what are requests kept together: whose conversation, which adapter, which beginning of a prompt?

    Parameters
    ----------
    source: ``session`` (`session_id`), ``adapter`` (the LoRA adapter asked for), ``model``, ``tenant``, ``fairness``
        (`fairness_id`), ``prefix`` (how the prompt begins) or ``header``.
    header: which header, where the source is one; lower case.
    blocks: how much of a prompt counts as its beginning, in blocks of the request's own `block_hashes`. One block may
        be a system prompt that everybody shares: then more are needed to tell conversations apart.
    tokens: the same for a request that has token ids only. Source of the default: SMG's ``prefix_hash`` policy.

    A request without such a thing has no key.

    >>> RequestKey("tenant").of(InferenceRequest(request_id="r-1", tenant="acme"))
    4948779126678378721
    >>> RequestKey("session").of(InferenceRequest(request_id="r-1")) is None
    True
    """

    source: KeySource = "session"
    header: str = ""
    blocks: int = 1
    tokens: int = 256

    def __post_init__(self) -> None:
        if self.source not in get_args(KeySource):
            raise UnknownNameError("source", self.source, get_args(KeySource))
        if (self.source == "header") != bool(self.header):
            raise InvalidInputError("header", self.header, "a name, with the source 'header' and no other")
        if self.header != self.header.strip().lower():
            raise InvalidInputError("header", self.header, "a name in lower case, without blanks around it")
        whole_number("blocks", self.blocks, low=1)
        whole_number("tokens", self.tokens, low=1)

    def of(self, request: InferenceRequest) -> int | None:
        """Return the request's key, 64 bits; None if it has none."""
        if self.source == "prefix":
            return self._beginning(request)
        word = {
            "session": request.session_id,
            "adapter": request.adapter_name,
            "model": request.model,
            "tenant": request.tenant,
            "fairness": request.fairness_id,
            "header": request.headers.get(self.header, "").strip(),
        }[self.source]
        return xxhash.xxh3_64_intdigest(word.encode()) if word else None

    def _beginning(self, request: InferenceRequest) -> int | None:
        hashes = request.block_hashes
        if hashes is not None and len(hashes):
            return int(hashes[min(self.blocks, len(hashes)) - 1])  # a chained hash names all up to there
        if request.tokens is not None and len(request.tokens):
            head = np.ascontiguousarray(request.tokens[: self.tokens], dtype="<u4")
            return xxhash.xxh3_64_intdigest(head.tobytes())
        return None


def identities_of(endpoints: Endpoints) -> HashArray:
    """Under which 64 bits is each endpoint known, here and in every other process? ``xxh3_64`` of its name, ``uint64[E]``."""
    identities = _hashed(endpoints.members.names)
    return identities if endpoints.positions is None else identities[endpoints.positions]


def capacities(endpoints: Endpoints) -> FloatArray:
    """How much may each endpoint carry, beside the others? ``CAPACITY_WEIGHT``, 1 where nobody said, ``float64[E]``."""
    weights = endpoints[CAPACITY_WEIGHT]
    return np.where(np.isnan(weights), 1.0, weights)


def preference(key: int, endpoints: Endpoints, *, weighted: bool = True) -> IndexArray:
    """In which order would the key take the endpoints? Positions, ``intp[E]``, its own first.

    Highest random weight: by ``-w / ln(u)``, the greatest first, with u in (0, 1) drawn by ``xxh3_64`` of the key and of
    ``xxh3_64`` of the endpoint's name, w its capacity (1 unless `weighted`; 0 comes last). Over many keys an endpoint is
    first for w / sum(w) of them. Where all weights are 0 they count as equal.

    Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates" (1998); the weights are those of
    Schindelhauer and Schomaker, "Weighted Distributed Hash Tables" (2005). Cost: 7 us at 64 endpoints, 40 us at 1,000.
    """
    identities = identities_of(endpoints)
    weights = capacities(endpoints) if weighted else np.ones(len(endpoints))
    if not weights.any():
        weights = np.ones(len(endpoints))
    drawn = _heights()(np.uint64(key), identities, weights)
    order: IndexArray = np.lexsort((identities, -drawn))
    return order


def has_room(endpoints: Endpoints, balance: float, *, weighted: bool = True) -> BoolArray:
    """Who may take one more request without carrying over ``(1 + balance)`` times its share? ``bool[E]``.

    Its share is ``w / sum(w)`` of all requests in flight and this one; below ``(1 + balance) * share`` there is room, which
    for equal weights is the bound of Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016):
    no load over the average times (1 + balance), rounded up. Somebody always has room. An endpoint of unknown load has
    none, unless nobody's is known. Cost: 10 us.
    """
    load = endpoints[INFLIGHT_REQUESTS]
    known = ~np.isnan(load)
    if not known.any():
        return np.ones(len(endpoints), dtype=np.bool_)
    weights = np.where(known, capacities(endpoints) if weighted else 1.0, 0.0)
    if not weights.any():
        weights = known.astype(np.float64)
    whole = (1.0 + balance) * (float(load[known].sum()) + 1.0)
    room: BoolArray = known & (np.where(known, load, 0.0) < whole * (weights / weights.sum()))
    return room


def check_balance(balance: float) -> None:
    """Refuse anything but a finite number above 0: at 0 every request may move every other."""
    if not (isfinite(balance) and balance > 0):
        raise InvalidInputError("balance", balance, "a finite number above 0")


@lru_cache(maxsize=16)
def _hashed(names: tuple[str, ...]) -> HashArray:
    """Hash the names of a pool, once for all requests between two changes of its members."""
    hashes = np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names], dtype=np.uint64)
    hashes.flags.writeable = False
    return hashes


@cache
def _heights() -> Callable[[np.uint64, HashArray, FloatArray], FloatArray]:
    """Compile the kernel at the first call; read-only arrays go through the same code."""
    return entry(heights, np.uint64(0), np.empty(0, dtype=np.uint64), np.empty(0))
