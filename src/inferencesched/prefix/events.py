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
from inferencesched.prefix._holdings import Block, Holdings, TailBlock
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

    Cost: about 3 us a block, and 0.6 kB of memory for each block that an engine holds (measured: see the page on KV
    events). Not safe from several threads at once.

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
        self._counts = dict.fromkeys(KVEventStats._fields, 0)

    @property
    def stats(self) -> KVEventStats:
        """What has happened since the applier was made, over all endpoints?"""
        return KVEventStats(**self._counts)

    def known(self, slot: int) -> int:
        """How many of the engine's blocks are known: held, or before one that is?"""
        holdings = self._holdings.get(slot)
        return len(holdings.blocks) if holdings else 0

    def apply(self, slot: int, batch: EventBatch) -> None:
        """Which blocks does the endpoint hold after this batch?

        Errors: `KVEventError` for an event whose parts do not fit each other; nothing has changed then. Should the
        index refuse a block, which takes a collision of 64-bit hashes, the endpoint is cleared before its error goes on.
        """
        self._index.blocks(slot)  # refuses a slot that the index does not have
        ready = [self._checked(event, f"events[{i}]") for i, event in enumerate(batch.events)]
        holdings = self._holdings.get(slot)
        if holdings is None:
            holdings = self._holdings[slot] = Holdings(self._tiers)
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
            audit(holdings if holdings is not None else Holdings(self._tiers), self._index, slot, self.block_size)

    def _checked(self, event: KVEvent, where: str) -> _Ready:
        """Return the event made ready; whatever may be wrong with it comes out here."""
        if isinstance(event, BlockStored | BlockRemoved) and not 0 <= (event.group_idx or 0) < _MOST_GROUPS:
            raise KVEventError(f"{where}.group_idx", event.group_idx, f"an integer in [0, {_MOST_GROUPS})")
        if not isinstance(event, BlockStored):
            return _Ready(event, _NOTHING, 0, None)
        size = tokens_per_block(event, where)
        if not size:
            return _Ready(event, _NOTHING, 0, None)
        return _Ready(event, token_array(event.token_ids), size, domain_of(event))

    def _apply(self, slot: int, holdings: Holdings, ready: list[_Ready]) -> None:
        lost: list[int] = []
        for event, tokens, size, domain in ready:
            self._counts["events"] += 1
            if isinstance(event, BlockRemoved):
                self._remove(holdings, event, lost)
                continue
            self._flush(slot, lost)  # what one event removes another may bring back
            if isinstance(event, BlockStored):
                self._store(slot, holdings, event, tokens, size, domain)
            elif isinstance(event, AllBlocksCleared):
                self._clear(slot, holdings, event)
            elif isinstance(event, CacheCreated):
                self._cleared(slot, holdings)
                holdings.window = max(holdings.window or 0, event.window_size or 0) or None
            else:
                self._counts["unknown_event"] += 1
        self._flush(slot, lost)

    def _store(
        self, slot: int, holdings: Holdings, event: BlockStored, tokens: TokenArray, size: int, domain: Domain | None
    ) -> None:
        tier = tier_of(event.medium)
        if not self._follows(slot, holdings, event):
            self._counts["ignored_group"] += 1
        elif tier is None:
            self._counts["unknown_medium"] += 1
        else:
            gained: list[tuple[Block, int]] = []
            where = int(tier)
            place, first = holdings.place(where, event.group_idx), 0
            blocks = self._blocks(holdings, event, tokens, size, domain)
            for block in blocks:
                first += holdings.add(block, where, place, gained)
            self._counts["stored"] += first
            self._counts["duplicates"] += len(blocks) - first
            self._insert(slot, holdings, gained)

    def _blocks(
        self, holdings: Holdings, event: BlockStored, tokens: TokenArray, size: int, domain: Domain | None
    ) -> list[Block]:
        """Return the event's blocks, those that were not known linked in; each is to get a copy."""
        known = holdings.blocks
        if domain is None:
            found = [known[name] for name in event.block_hashes if name in known]
            self._counts["unknown_block"] += len(event.block_hashes) - len(found)
            return found
        before = None
        if event.parent_block_hash is not None:
            before = known.get(event.parent_block_hash)
            if before is None:
                self._counts["unknown_parent"] += 1
                return []
            seed = before.seed
        else:
            seed = domain_seed(self._seed, lora=domain.lora, salt=domain.salt, **self._names)
        blocks = []
        for fresh in self._retold(before, event.block_hashes, tokens, size, seed, domain):
            block = known.get(fresh.hash)
            if block is None:
                block = fresh
                block.before = before
                holdings.link(block)
            elif block.before is not before or block.key != fresh.key or block.tail != fresh.tail or block.seed != seed:
                self._counts["conflicts"] += 1
                break
            blocks.append(block)
            before = block
        return blocks

    def _retold(
        self,
        before: Block | None,
        names: tuple[int, ...],
        tokens: TokenArray,
        size: int,
        seed: int,
        domain: Domain,
    ) -> list[Block]:
        """Return the event's blocks with our names for what is complete in them; where they hang is left open."""
        own = self.block_size
        key: int | None = None
        kept: tuple[int, ...] = ()
        skip = 0
        if before is not None:
            key, kept, skip = before.key, before.digests, len(before.tail) // 4
            if skip:
                tokens = np.concatenate((np.frombuffer(before.tail, dtype=np.uint32), tokens))
        digests, words = self._digests(domain, size, skip, kept, len(tokens))
        keys = extend_chain(key, tokens, own, seed, self._seed, words).tolist()
        if size == own and not skip:
            return [Block(None, name, (key,), key, seed) for name, key in zip(names, keys, strict=True)]
        found: list[Block] = []
        end, done = skip, 0
        for i, name in enumerate(names):
            end += size
            complete = end // own
            inside = tuple(keys[done:complete])
            if inside:
                key, done = inside[-1], complete
            if complete * own == end:
                found.append(Block(None, name, inside, key, seed))
                continue
            tail = tokens[complete * own : end].tobytes()
            rows = digests[max(complete * own - skip, 0) // size : i + 1] if digests else []
            here = [*(kept if complete * own < skip else ()), *(digest for row in rows for digest in row or ())]
            found.append(TailBlock(None, name, inside, key, seed, tail, tuple(dict.fromkeys(here))))
        return found

    def _digests(
        self, domain: Domain, size: int, skip: int, kept: tuple[int, ...], tokens: int
    ) -> tuple[list[tuple[int, ...] | None], list[TokenArray | None] | None]:
        """Return the extra keys of the event's blocks as digests, and those of our own blocks as words to hash."""
        if not kept and not any(domain.keys):
            return [], None
        digests = [key_digests(keys) for keys in domain.keys]
        rows = realign(digests, size, self.block_size, tokens // self.block_size, skip)
        if rows and kept:
            rows[0] = tuple(dict.fromkeys((*kept, *(rows[0] or ()))))
        return digests, [key_words(row) for row in rows]

    def _remove(self, holdings: Holdings, event: BlockRemoved, lost: list[int]) -> None:
        group, tier = event.group_idx, tier_of(event.medium)
        foreign = event.window_size is not None and event.window_size < (holdings.window or 0)
        if foreign or (group is not None and not holdings.whole.get(group, True)):
            self._counts["ignored_group"] += 1
            return
        if tier is None and not event.every_medium:
            self._counts["unknown_medium"] += 1
            return
        for name in event.block_hashes:
            block = holdings.blocks.get(name)
            if block is None:
                there = False
            elif event.every_medium or tier is None:
                there = holdings.drop(block, None, lost)
            else:
                there = holdings.take(block, int(tier), group, lost)
            self._counts["removed" if there else "unknown_removal"] += 1

    def _clear(self, slot: int, holdings: Holdings, event: AllBlocksCleared) -> None:
        if not event.medium:
            self._cleared(slot, holdings)
            return
        tier = tier_of(event.medium)
        if tier is None:
            self._counts["unknown_medium"] += 1
            return
        lost: list[int] = []
        for block in list(holdings.blocks.values()):
            holdings.drop(block, int(tier), lost)
        self._counts["cleared"] += 1
        self._flush(slot, lost)

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

    def _insert(self, slot: int, holdings: Holdings, gained: list[tuple[Block, int]]) -> None:
        """Bring own blocks into the index, those that follow each other at once."""
        if not gained:
            return
        head, last = gained[0], None
        run: list[int] = []
        for block, i in gained:
            if run and (block.keys[i - 1] if i else block.before and block.before.key) != last:
                self._insert_run(slot, holdings, *head, run)
                head, run = (block, i), []
            last = block.keys[i]
            run.append(last)
        self._insert_run(slot, holdings, *head, run)

    def _insert_run(self, slot: int, holdings: Holdings, block: Block, i: int, run: list[int]) -> None:
        keys, parent = np.array(run, dtype=np.uint64), _parent(block, i)
        if parent is None:
            self._index.insert(slot, keys)
            return
        try:
            self._index.insert_after(slot, parent, keys)
        except UnknownParentError:
            # Nobody holds what is before it, and the index has forgotten that; we know the way back to the beginning.
            known = [*holdings.chain(block.before), *block.keys[:i]]
            self._index.insert(slot, np.array(known + run, dtype=np.uint64), start=len(known))

    def _flush(self, slot: int, lost: list[int]) -> None:
        if lost:
            self._index.remove(slot, np.array(lost, dtype=np.uint64))
            lost.clear()


def _parent(block: Block, i: int) -> int | None:
    """Return the own block before one that is complete in this block, None at the beginning of a prompt."""
    if i:
        return block.keys[i - 1]
    return block.before.key if block.before is not None else None
