"""What do the engines' events make of the prefix index?

An engine names its blocks by hashes of its own, which nobody else can compute. So each event is retold in ours: the
hashes of a prompt (`inferencesched.prefix.hashing`) are recomputed from the event's tokens, behind the hash that its
parent block has in ours, and what an event removes is looked up by the engine's name. What cannot be looked up is
counted, never guessed: then the index holds less than the engine, and a request is sent somewhere else than it might
have been; nothing is matched that is not there.

After llm-d's precise prefix index (llm-d-router, pkg/kvevents and pkg/kvcache), with three differences: a block of ours
is held where all of the engine's blocks behind it are, an own block that comes back behind a hole counts again, and
copies are counted in each tier.
"""

from typing import NamedTuple, final

import numpy as np

from inferencesched._typing import HashArray, TokenArray
from inferencesched.errors import InvalidInputError, KVEventError, UnknownParentError, whole_number
from inferencesched.prefix._holdings import EVERYWHERE, NO_TAIL, NOWHERE, Before, Holdings, Run, Scratch, Tail
from inferencesched.prefix._holdings_audit import audit
from inferencesched.prefix.extra_keys import Domain, domain_of, extend_chain, key_digests, key_words, realign
from inferencesched.prefix.hashing import SEED, domain_seed, token_array
from inferencesched.prefix.index import PrefixIndex
from inferencesched.prefix.kv_records import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    CacheCreated,
    EventBatch,
    KVEvent,
    Tier,
    tier_of,
    tokens_per_block,
)
from inferencesched.prefix.kv_wire import decode_event_batch
from inferencesched.prefix.sequence import StreamStep

#: Kinds of attention under which a block is of use to whoever shares the whole prompt up to it: llm-d's and Dynamo's.
WHOLE_PROMPT = frozenset(("full_attention", "mla_attention", "sink_full_attention"))
EVERY_TIER = Tier.DEVICE | Tier.HOST | Tier.DISK | Tier.EXTERNAL
_MOST_GROUPS = 256
_NOTHING = np.empty(0, dtype=np.uint32)


class KVEventStats(NamedTuple):
    """What has happened since the applier was made?

    Blocks are the engines' own. `stored` and `removed` count the first and the last copy of a block in a place (a tier
    and a group of layers), `duplicates` those between; `cleared` counts clearings. Passed over, in blocks:
    `unknown_removal`, `unknown_block` (said to lie in one more tier, and not known); in events: `unknown_parent`,
    `unknown_medium`, `unknown_event`, `ignored_group`, `conflicts` (a hash that stood for other tokens before). Of
    streams: `gaps` are requests for a replay, `restarts`, `lost_frames`, and frames that were `unreadable`.
    """

    events: int
    stored: int
    removed: int
    duplicates: int
    cleared: int
    unknown_parent: int
    unknown_removal: int
    unknown_block: int
    unknown_medium: int
    unknown_event: int
    ignored_group: int
    conflicts: int
    gaps: int
    restarts: int
    lost_frames: int
    unreadable: int


class _Ready(NamedTuple):
    """An event that was found good: its tokens as an array, how many a block has, and its domain."""

    event: KVEvent
    tokens: TokenArray
    size: int
    domain: Domain | None


@final
class KVEventApplier:
    """What do the engines' events make of the prefix index?

    `index` is a `PrefixIndex` without capacity, which nobody else writes to. A slot stands for one cache: an endpoint,
    or a rank of one that has several (`EventBatch.data_parallel_rank`). `block_size` is that of the index's own hashes;
    an engine's may be another: a divisor, a multiple, or neither. `model`, `tenant` and `seed` are what `block_hashes`
    is given for requests; an event adds adapter, salt and extra keys. `tiers` are those that count: a block that lies
    on none of them is not in the index, `tiers_of` knows of it all the same.

    Of a model with several kinds of attention only groups that attend to the whole prompt count; where there are
    several of those, a block is held while one of them holds it. Blocks of a group whose kind was never told are
    passed over.

    Cost: about 20 us an event and 1 us a block of 16 tokens, 3 us a removal; 90 bytes of memory a block, more where
    several of ours are complete in one, or where blocks end in the middle of ours (measured: see the page on KV events).
    Not safe from several threads at once.

    >>> from inferencesched.prefix.hashing import block_hashes
    >>> index = PrefixIndex(endpoints=2)
    >>> applier = KVEventApplier(index, block_size=4)
    >>> stored = BlockStored(block_hashes=(91, 92), token_ids=tuple(range(8)), block_size=4)
    >>> applier.apply(1, EventBatch(events=(stored,)))
    >>> prompt = block_hashes(np.arange(12, dtype=np.uint32), 4)
    >>> index.match(prompt)
    array([0, 2], dtype=int32)
    >>> applier.apply(1, EventBatch(events=(BlockRemoved(block_hashes=(92, 93)),)))
    >>> index.match(prompt), applier.stats.unknown_removal
    (array([0, 1], dtype=int32), 1)
    """

    def __init__(
        self,
        index: PrefixIndex,
        *,
        block_size: int,
        model: str = "",
        tenant: str = "",
        seed: int = SEED,
        tiers: Tier = EVERY_TIER,
    ) -> None:
        if index.capacity is not None:
            raise InvalidInputError("index", f"capacity={index.capacity}", "an index without capacity: engines evict")
        self.block_size = whole_number("block_size", block_size, 1)
        self._index = index
        self._names = {"model": model, "tenant": tenant}
        self._seed = seed
        domain_seed(seed, model=model, tenant=tenant)
        self._tiers = tiers
        self._holdings: dict[int, Holdings] = {}
        self._scratch = Scratch()
        self._counts = dict.fromkeys(KVEventStats._fields, 0)

    @property
    def stats(self) -> KVEventStats:
        """What has happened since the applier was made, over all endpoints?"""
        return KVEventStats(**self._counts)

    def known(self, slot: int) -> int:
        """How many of the engine's blocks are known: held, or before one that is?"""
        holdings = self._holdings.get(slot)
        return len(holdings) if holdings is not None else 0

    def own_hash(self, slot: int, engine_hash: int) -> int | None:
        """By which of our hashes does a block of this engine go? None where the block is not known.

        It is the hash of the last block of ours that is complete in the engine's block or before it: where the engine's
        blocks are the smaller ones, several share one, and the first ones have none yet, which is None as well.
        """
        holdings = self._holdings.get(slot)
        before = holdings.before(engine_hash) if holdings is not None else None
        return None if before is None else before.key

    def apply(self, slot: int, batch: EventBatch) -> None:
        """Which blocks does the endpoint hold after this batch?

        Errors: `KVEventError` for an event whose parts do not fit each other; nothing has changed then. Should the
        index refuse a block, which takes a collision of 64-bit hashes, the endpoint is cleared before its error goes on.
        """
        self._index.blocks(slot)  # refuses a slot that the index does not have
        ready = [self._checked(event, i) for i, event in enumerate(batch.events)]
        holdings = self._holdings.get(slot)
        if holdings is None:
            holdings = self._holdings[slot] = Holdings(self._tiers, self._scratch)
        try:
            self._apply(slot, holdings, ready)
        except BaseException:
            self.clear(slot)
            raise

    def take(self, slot: int, step: StreamStep[bytes] | StreamStep[EventBatch]) -> None:
        """What does a step of the endpoint's stream change? Forget where it says so, then apply what is ready.

        Errors: `KVEventError` for a frame that cannot be read. That frame is a hole: the endpoint is cleared, the
        frames behind it are applied, and then the first such error is raised.
        """
        self._index.blocks(slot)
        self._counts["gaps"] += step.kind == "gap"
        self._counts["restarts"] += step.kind == "restart"
        self._counts["lost_frames"] += step.lost
        if step.forget:
            self.clear(slot)
        wrong: KVEventError | None = None
        for _, payload in step.ready:
            try:
                self.apply(slot, payload if isinstance(payload, EventBatch) else decode_event_batch(payload))
            except KVEventError as error:
                self.clear(slot)
                self._counts["unreadable"] += 1
                wrong = wrong or error
        if wrong is not None:
            raise wrong

    def clear(self, slot: int) -> None:
        """Is nothing known of the endpoint, as after a restart? It is after this: nor of its groups of layers."""
        self._index.clear(slot)
        self._holdings.pop(slot, None)

    def tiers_of(self, slot: int, hashes: HashArray) -> HashArray:
        """On which tiers does the endpoint hold each of these blocks? `Tier` flags, ``uint64[B] -> uint64[B]``."""
        holdings = self._holdings.get(slot)
        if holdings is None:
            return np.zeros(len(hashes), dtype=np.uint64)
        return np.array([holdings.mask(key) for key in hashes.tolist()], dtype=np.uint64)

    def match_tiers(self, slot: int, hashes: HashArray) -> dict[Tier, int]:
        """How many of a prompt's first blocks does each tier of the endpoint hold, without a gap?

        Blocks on two tiers count on both; a tier that holds not even the first block is left out. As llm-d's
        ``matchedBlockCountByTier``.
        """
        masks = self.tiers_of(slot, hashes)
        depths = {tier: int(np.argmin(np.append(masks & np.uint64(tier), np.uint64(0)))) for tier in Tier}
        return {tier: depth for tier, depth in depths.items() if depth}

    def check(self) -> None:
        """Does everything agree, the index included? Raises AssertionError where not; for tests: it is slow."""
        for slot in range(self._index.endpoints):
            holdings = self._holdings.get(slot)
            audit(
                holdings if holdings is not None else Holdings(self._tiers, self._scratch),
                self._index,
                slot,
                self.block_size,
            )

    def _checked(self, event: KVEvent, i: int) -> _Ready:
        """Return the event made ready; whatever may be wrong with it comes out here."""
        if not isinstance(event, BlockStored):
            if isinstance(event, BlockRemoved):
                _check_group(event.group_idx, i)
            return _Ready(event, _NOTHING, 0, None)
        _check_group(event.group_idx, i)
        size = tokens_per_block(event, i)
        if not size:
            return _Ready(event, _NOTHING, 0, None)
        try:
            tokens = np.array(event.token_ids, dtype=np.uint32)
        except OverflowError:
            tokens = token_array(event.token_ids)  # says it in our words
        return _Ready(event, tokens, size, domain_of(event))

    def _apply(self, slot: int, holdings: Holdings, ready: list[_Ready]) -> None:
        self._counts["events"] += len(ready)
        alike: list[BlockRemoved] = []  # vLLM removes a block an event: those that follow each other go at once
        for event, tokens, size, domain in ready:
            if isinstance(event, BlockRemoved):
                if alike and _place_of(alike[0]) != _place_of(event):
                    self._remove(slot, holdings, alike)
                    alike = []
                alike.append(event)
                continue
            if alike:
                self._remove(slot, holdings, alike)
                alike = []
            if isinstance(event, BlockStored):
                self._store(slot, holdings, event, tokens, size, domain)
            elif isinstance(event, AllBlocksCleared):
                self._clear(slot, holdings, event)
            elif isinstance(event, CacheCreated):
                self._cleared(slot, holdings)
                holdings.window = max(holdings.window or 0, event.window_size or 0) or None
            else:
                self._counts["unknown_event"] += 1
        if alike:
            self._remove(slot, holdings, alike)

    def _store(
        self, slot: int, holdings: Holdings, event: BlockStored, tokens: TokenArray, size: int, domain: Domain | None
    ) -> None:
        tier = tier_of(event.medium)
        if not self._follows(slot, holdings, event):
            self._counts["ignored_group"] += 1
            return
        if tier is None:
            self._counts["unknown_medium"] += 1
            return
        names, place = np.array(event.block_hashes, dtype=np.uint64), holdings.place(int(tier), event.group_idx)
        if domain is None:
            stored, first, runs = holdings.move(names, place, int(tier))
            self._counts["unknown_block"] += len(names) - stored
        else:
            before = self._before(holdings, event, domain)
            if before is None:
                self._counts["unknown_parent"] += 1
                return
            keys, tails = self._retold(before, len(names), tokens, size, domain)
            own = self.block_size
            stored, first, runs = holdings.store(names, keys, tails, before, size, own, place, int(tier))
            self._counts["conflicts"] += stored < len(names)
        self._counts["stored"] += first
        self._counts["duplicates"] += stored - first
        for run in runs:
            self._insert(slot, holdings, run)

    def _before(self, holdings: Holdings, event: BlockStored, domain: Domain) -> Before | None:
        """Where does the first block of the event hang? None where its parent is not known."""
        if event.parent_block_hash is not None:
            return holdings.before(event.parent_block_hash)
        seed = domain_seed(self._seed, lora=domain.lora, salt=domain.salt, **self._names)
        return Before(-1, None, seed, NO_TAIL)

    def _retold(
        self, before: Before, blocks: int, tokens: TokenArray, size: int, domain: Domain
    ) -> tuple[HashArray, list[Tail | None] | None]:
        """Return our names for what is complete in the event's blocks, and what is behind that in each of them."""
        own, skip, kept = self.block_size, len(before.tail.tokens), before.tail.digests
        if skip:
            tokens = np.concatenate((before.tail.tokens, tokens))
        digests: list[tuple[int, ...] | None] = []
        words: list[TokenArray | None] | None = None
        if kept or any(domain.keys):
            digests = [key_digests(keys) for keys in domain.keys]
            rows = realign(digests, size, own, len(tokens) // own, skip)
            if rows and kept:
                rows[0] = tuple(dict.fromkeys((*kept, *(rows[0] or ()))))
            words = [key_words(row) for row in rows]
        keys = extend_chain(before.key, tokens, own, before.seed, self._seed, words)
        if not skip and size % own == 0:
            return keys, None
        tails: list[Tail | None] = []
        for end in range(skip + size, skip + size * blocks + 1, size):
            begin = end // own * own
            if begin == end:
                tails.append(None)
                continue
            touched = digests[max(begin - skip, 0) // size : (end - skip) // size] if digests else []
            here = [*(kept if begin < skip else ()), *(digest for row in touched for digest in row or ())]
            tails.append(Tail(tokens[begin:end].copy(), tuple(dict.fromkeys(here))))
        return keys, tails

    def _remove(self, slot: int, holdings: Holdings, alike: list[BlockRemoved]) -> None:
        """Take blocks out of one place; several events that do that are as one."""
        medium, group, window, everywhere = _place_of(alike[0])
        tier = tier_of(medium)
        foreign = window is not None and window < (holdings.window or 0)
        if foreign or (group is not None and not holdings.whole.get(group, True)):
            self._counts["ignored_group"] += len(alike)
            return
        if tier is None and not everywhere:
            self._counts["unknown_medium"] += len(alike)
            return
        names = np.array([name for event in alike for name in event.block_hashes], dtype=np.uint64)
        if everywhere or tier is None:
            there, lost = holdings.take(names, EVERYWHERE, int(EVERY_TIER))
        else:
            there, lost = holdings.take(names, holdings.places.get((int(tier), group), NOWHERE))
        self._counts["removed"] += there
        self._counts["unknown_removal"] += len(names) - there
        if len(lost):
            self._index.remove(slot, lost)

    def _clear(self, slot: int, holdings: Holdings, event: AllBlocksCleared) -> None:
        if not event.medium:
            self._cleared(slot, holdings)
            return
        tier = tier_of(event.medium)
        if tier is None:
            self._counts["unknown_medium"] += 1
            return
        self._index.remove(slot, holdings.clear_tiers(int(tier)))
        self._counts["cleared"] += 1

    def _cleared(self, slot: int, holdings: Holdings) -> None:
        self._index.clear(slot)
        holdings.forget()
        self._counts["cleared"] += 1

    def _follows(self, slot: int, holdings: Holdings, event: BlockStored) -> bool:
        """Is this a group whose blocks are of use to whoever shares the whole prompt? Learns what the event tells."""
        window, group, kind = event.window_size, event.group_idx, event.kv_cache_spec_kind
        if window is not None and window != holdings.window:
            if window < (holdings.window or 0):
                return False
            if holdings.window is not None:  # what was taken for the whole prompt was a shorter window
                self._cleared(slot, holdings)
            holdings.window = window
        if group is None:
            return kind is None or kind in WHOLE_PROMPT
        if kind is not None:
            holdings.whole[group] = kind in WHOLE_PROMPT
        return holdings.whole.get(group, False)

    def _insert(self, slot: int, holdings: Holdings, run: Run) -> None:
        if run.parent is None:
            self._index.insert(slot, run.keys)
            return
        try:
            self._index.insert_after(slot, run.parent, run.keys)
        except UnknownParentError:
            # Nobody holds what is before it, and the index has forgotten that; we know the way back to the beginning.
            known = holdings.chain(run.row)
            self._index.insert(slot, np.concatenate((known, run.keys)), start=len(known))


def _check_group(group: int | None, i: int) -> None:
    if group is not None and not 0 <= group < _MOST_GROUPS:
        raise KVEventError(f"events[{i}].group_idx", group, f"an integer in [0, {_MOST_GROUPS})")


def _place_of(event: BlockRemoved) -> tuple[str | None, int | None, int | None, bool]:
    return event.medium, event.group_idx, event.window_size, event.every_medium
