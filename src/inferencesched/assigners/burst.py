"""Who takes which of a burst of requests, so that a prompt that they share is computed once?

When many requests with one prompt come at the same moment (the samples of a step of reinforcement learning, say), no cache
holds it yet: scored one by one they spread, and every server computes the same prefix. Seen together they can be
kept together. The window in which they are gathered is the caller's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from inferencesched._typing import HashArray
from inferencesched.endpoints import RUNNING_REQUESTS, Endpoints
from inferencesched.errors import NoEndpointsError, UnknownNameError, whole_number
from inferencesched.framework import CycleState, ProfileResult, SchedulingResult, Target
from inferencesched.prefix.prompts import whole_prompt_hashes
from inferencesched.request import InferenceRequest

BalanceBy = Literal["requests", "tokens"]

_PROFILE = "burst"
_NO_BLOCKS: HashArray = np.empty(0, dtype=np.uint64)
_NO_BLOCKS.flags.writeable = False


class Place(NamedTuple):
    """On which endpoint, by position, and how many of its first blocks do the requests before it bring there?"""

    position: int
    shared: int


class _Unit(NamedTuple):
    """Which requests have one and the same prompt, by place, and what are its blocks?"""

    members: tuple[int, ...]
    blocks: tuple[int, ...]


class _Batch:
    """What has been placed so far: load and blocks by endpoint; who goes first where loads are equal."""

    __slots__ = ("holders", "loads", "order", "share")

    def __init__(self, endpoints: Endpoints, total: int) -> None:
        count = len(endpoints)
        running = endpoints[RUNNING_REQUESTS]
        by_rank = sorted(
            range(count),
            key=lambda i: (np.inf if np.isnan(running[i]) else float(running[i]), endpoints.name(i)),
        )
        #: Place in the order of running requests (unknown is most) and name.
        self.order = [0] * count
        for rank, position in enumerate(by_rank):
            self.order[position] = rank
        self.loads = [0] * count
        self.holders: dict[int, set[int]] = {}
        #: Whoever has as much as this is not preferred any longer.
        self.share = -(-total // max(1, count))

    def shared(self, blocks: Sequence[int]) -> list[int]:
        """Return how many of these blocks, from the first on without a gap, have been placed on each endpoint."""
        depths = [0] * len(self.loads)
        for depth, block in enumerate(blocks, 1):
            here = [i for i in self.holders.get(block, ()) if depths[i] == depth - 1]
            if not here:
                break
            for i in here:
                depths[i] = depth
        return depths

    def least(self, positions: Sequence[int]) -> int:
        """Return the least loaded of these."""
        return min(positions, key=lambda i: (self.loads[i], self.order[i]))


@dataclass(frozen=True, slots=True)
class BurstAssigner:
    """Which requests of a burst belong together, and on which endpoint?

    Requests with the same prompt are a unit; a request by itself is one only where it shares at least
    `min_colocate_blocks` leading blocks with another of the batch. Units of several requests are placed first, then the
    single ones; among each, longer prompts first, then as they came.

    A unit goes where the longest part of its prompt, at least `min_colocate_blocks` of it, was placed already in this
    batch, as long as that endpoint has less than its fair share, the batch's total over the endpoints, rounded up; else
    to the endpoint with the least load in this batch, then the fewest running requests, then the first name. What
    `max_per_replica` does not allow there goes to the least loaded next, and so on; what it allows nowhere is placed one
    by one on the least loaded. Requests that share nothing are left to others in `place`; `assign`, which must
    answer each, spreads them by the same least load.

    Parameters
    ----------
    max_per_replica: how many requests of one unit an endpoint takes; None is all of them.
    min_colocate_blocks: how much prompts must share to be kept together; 0 keeps only equal ones together.
    balance_by: what load is: ``requests``, or ``tokens``: the blocks of a unit that were not placed on the endpoint before.
    block_size: tokens a block, for requests that bring tokens and no ``block_hashes``; a rest counts as a block.
    max_blocks: how much of a prompt is compared, in blocks.

    Pure; the order of the endpoints does not matter. Reads ``RUNNING_REQUESTS`` (scraped). Every endpoint that it is given
    may be chosen, for any of the requests: filter before (`Endpoints.where`). Cost: some us a request and block.
    Source: llm-d router's ``burst-prefix-cache-producer``.

    >>> from inferencesched.pool import InferencePool
    >>> pool = InferencePool()
    >>> pool.join("a"); pool.join("b")
    >>> prompts = np.array([[1, 2], [1, 2], [5, 6], [5, 6], [8, 9]], dtype=np.uint32)
    >>> burst = [InferenceRequest(request_id=str(i), tokens=tokens) for i, tokens in enumerate(prompts)]
    >>> places = BurstAssigner(block_size=1).place(burst, pool.snapshot())
    >>> [None if each is None else each.position for each in places]
    [0, 0, 1, 1, None]
    """

    max_per_replica: int | None = None
    min_colocate_blocks: int = 0
    balance_by: BalanceBy = "requests"
    block_size: int = 64
    max_blocks: int = 2048

    def __post_init__(self) -> None:
        if self.max_per_replica is not None:
            whole_number("max_per_replica", self.max_per_replica, low=1)
        whole_number("min_colocate_blocks", self.min_colocate_blocks)
        whole_number("block_size", self.block_size, low=1)
        whole_number("max_blocks", self.max_blocks, low=1)
        if self.balance_by not in get_args(BalanceBy):
            raise UnknownNameError("balance_by", self.balance_by, get_args(BalanceBy))

    def place(self, requests: Sequence[InferenceRequest], endpoints: Endpoints) -> list[Place | None]:
        """Return each request's place; None for those that share nothing with any other."""
        chains = [self.blocks(each) for each in requests]
        return self._places(chains, self._positions(chains, endpoints)[1], len(endpoints))

    def assign(
        self, requests: Sequence[InferenceRequest], endpoints: Endpoints, cycle: CycleState
    ) -> list[SchedulingResult]:
        """Return one result a request, in order: the one profile is ``burst``, the score 1 where a prompt is shared, 0 else.

        Tokens to compute are the prompt's, less what the batch brings there before. Errors: `NoEndpointsError`.
        """
        if requests and not len(endpoints):
            raise NoEndpointsError(f"no endpoint for a burst of {len(requests)} requests")
        chains = [self.blocks(each) for each in requests]
        batch, positions = self._positions(chains, endpoints)
        alone = [i for i, position in enumerate(positions) if position is None]
        for i in alone:
            position = positions[i] = batch.least(range(len(endpoints)))
            batch.loads[position] += 1 if self.balance_by == "requests" else len(chains[i])
        answers: list[SchedulingResult] = []
        for i, place in enumerate(self._places(chains, positions, len(endpoints))):
            assert place is not None  # nobody is left out by now
            request, at = requests[i], place.position
            tokens = max(0, (request.prompt_tokens or 0) - place.shared * self.block_size)
            slot, generation = endpoints.stay(at)
            score = 0.0 if i in alone else 1.0
            target = Target(endpoints.name(at), slot, generation, score, tokens, endpoints.address(at))
            profiles = {_PROFILE: ProfileResult((target,))}
            answers.append(SchedulingResult(request, _PROFILE, profiles, endpoints.version))
        return answers

    def blocks(self, request: InferenceRequest) -> HashArray:
        """Under which names are the prompt's blocks compared? ``uint64[B]``, empty where the request has neither."""
        if request.block_hashes is not None:
            return request.block_hashes[: self.max_blocks]
        if request.tokens is None:
            return _NO_BLOCKS
        return whole_prompt_hashes(
            request.tokens,
            self.block_size,
            max_blocks=self.max_blocks,
            model=request.model,
            lora=request.adapter,
            salt=request.cache_salt,
            tenant=request.tenant,
        )

    def _positions(self, chains: Sequence[HashArray], endpoints: Endpoints) -> tuple[_Batch, list[int | None]]:
        """Return the batch as it is then, and each request's endpoint, None for those that share nothing."""
        positions: list[int | None] = [None] * len(chains)
        units = self._units(chains) if len(endpoints) else []
        sizes = [len(unit.members) if self.balance_by == "requests" else len(unit.blocks) for unit in units]
        batch = _Batch(endpoints, sum(sizes))
        for unit in units:
            for position, first, run in self._placed(unit, batch):
                for member in unit.members[first : first + run]:
                    positions[member] = position
        return batch, positions

    @staticmethod
    def _places(chains: Sequence[HashArray], positions: Sequence[int | None], count: int) -> list[Place | None]:
        """Return what each request finds where it is sent, if they are sent in this order."""
        sent: list[set[int]] = [set() for _ in range(count)]
        places: list[Place | None] = []
        for chain, position in zip(chains, positions, strict=True):
            if position is None:
                places.append(None)
                continue
            blocks = chain.tolist()
            shared = next((depth for depth, block in enumerate(blocks) if block not in sent[position]), len(blocks))
            sent[position].update(blocks)
            places.append(Place(position, shared))
        return places

    def _units(self, chains: Sequence[HashArray]) -> list[_Unit]:
        """Return what is placed, in the order of placing."""
        same: dict[bytes, list[int]] = {}
        for i, chain in enumerate(chains):
            if len(chain):
                same.setdefault(chain.tobytes(), []).append(i)
        heads: dict[bytes, int] = {}
        least = self.min_colocate_blocks
        for members in same.values():
            head = chains[members[0]][:least]
            if least and len(head) == least:
                heads[head.tobytes()] = heads.get(head.tobytes(), 0) + len(members)
        units = [
            _Unit(tuple(members), tuple(chains[members[0]].tolist()))
            for members in same.values()
            if len(members) > 1 or (least and heads.get(chains[members[0]][:least].tobytes(), 0) > 1)
        ]
        return sorted(units, key=lambda unit: (len(unit.members) == 1, -len(unit.blocks)))

    def _placed(self, unit: _Unit, batch: _Batch) -> Iterator[tuple[int, int, int]]:
        """Place a unit; walk where its members went: position, the first of them, how many."""
        everybody = range(len(batch.loads))
        shared = batch.shared(unit.blocks)
        size, cap, here = len(unit.members), self.max_per_replica, [0] * len(batch.loads)
        near = [i for i in everybody if self.min_colocate_blocks and shared[i] >= self.min_colocate_blocks]
        near = [i for i in near if batch.loads[i] < batch.share]
        longest = max((shared[i] for i in near), default=0)
        first = 0
        while first < size:
            room = everybody if cap is None else [i for i in everybody if here[i] < cap]
            if not first and near:
                position = batch.least([i for i in near if shared[i] == longest])
            else:
                position = batch.least(room or everybody)
            run = size - first if cap is None else min(size - first, max(1, cap - here[position]))
            here[position] += run
            batch.loads[position] += run if self.balance_by == "requests" else len(unit.blocks) - shared[position]
            yield position, first, run
            first += run
        for position in everybody:
            if here[position]:
                for block in unit.blocks:
                    batch.holders.setdefault(block, set()).add(position)
