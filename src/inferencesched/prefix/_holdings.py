"""What does one endpoint hold, by the engine's own names, and what is that in ours?

An engine's blocks form trees: each hangs behind another, or begins a prompt. A block of ours is held where all of the
engine's blocks that it touches are held::

    engine, 16 tokens     a ── b ── c ── d ── e ──          own, 64: one block, complete at d, which needs a, b, c, d;
    own, 64 tokens        └─────── 1 ──────┘                a, b and c end in the middle: they have a tail

    engine, 64 tokens     ─────── a ───────                 own, 16: four blocks, all complete at a, which need a only
    own, 16 tokens        ─ 1 ─ 2 ─ 3 ─ 4 ─

Rules:

* an engine's block is known while a copy of it is held anywhere, or one behind it is known: so a parent that is known
  leads back to the beginning of the prompt;
* copies are counted for each place, which is a tier and a group of layers: what was stored n times is there until it
  was removed n times;
* a block of ours counts once for each block of the engine at which it is complete, and on each *level*: on any tier
  that counts, and on each tier by itself.
"""

from collections.abc import Sequence
from typing import Final

from inferencesched.prefix.kv_records import Tier

#: Counters stand beside each other in one integer, 32 bits each: of copies by place, of own blocks by level.
FIELD: Final = 32
LOW: Final = (1 << FIELD) - 1
#: Levels: bit 0 is any tier that counts, bits 1 to 4 are the tiers.
ALL_LEVELS: Final = 0b11111
SPREAD: Final = tuple(sum(1 << FIELD * i for i in range(5) if levels >> i & 1) for levels in range(32))
TIERS: Final = tuple(int(tier) for tier in Tier)


class Block:
    """One block of the engine that ends where an own block ends."""

    __slots__ = ("before", "children", "copies", "hash", "key", "keys", "seed", "tiers")

    #: What a `TailBlock` has; there are too many blocks for each to have its own of nothing.
    tail = b""
    digests: tuple[int, ...] = ()
    behind: "Sequence[Block]" = ()

    def __init__(self, before: "Block | None", name: int, keys: tuple[int, ...], key: int | None, seed: int) -> None:
        self.before = before
        self.hash = name
        self.keys = keys  # own blocks complete in this one
        self.key = key  # the last own block that is complete here or before, None for none
        self.seed = seed  # of the domain
        self.copies = 0
        self.tiers = 0
        self.children = 0


class TailBlock(Block):
    """One block of the engine that ends in the middle of an own block."""

    __slots__ = ("behind", "digests", "tail")

    def __init__(
        self,
        before: "Block | None",
        name: int,
        keys: tuple[int, ...],
        key: int | None,
        seed: int,
        tail: bytes,
        digests: tuple[int, ...],
    ) -> None:
        super().__init__(before, name, keys, key, seed)
        self.tail = tail  # tokens behind the last own block, as uint32
        self.digests = digests  # extra keys of those
        self.behind: list[Block] = []  # the children: who is complete farther on depends on this one


class Holdings:
    """What does one endpoint hold? `counted` are the tiers that make a block ours count as held."""

    __slots__ = ("blocks", "levels", "own", "places", "whole", "window")

    def __init__(self, counted: Tier) -> None:
        self.blocks: dict[int, Block] = {}
        self.own: dict[int, int] = {}
        #: Tiers are plain integers here: flags of the enum cost a microsecond an operation.
        self.places: dict[tuple[int, int | None], int] = {}
        self.levels = tuple(mask << 1 | bool(mask & int(counted)) for mask in range(16))
        #: Groups of layers by number: do they attend to the whole prompt?
        self.whole: dict[int, bool] = {}
        self.window: int | None = None

    def forget(self) -> None:
        """Know no block any more; what is known of groups and windows stays."""
        self.blocks.clear()
        self.own.clear()

    def place(self, tier: int, group: int | None) -> int:
        """Return the place's number."""
        return self.places.setdefault((tier, group), len(self.places))

    def link(self, block: Block) -> None:
        """Make a new block known."""
        self.blocks[block.hash] = block
        before = block.before
        if before is not None:
            before.children += 1
            if isinstance(before, TailBlock):
                before.behind.append(block)

    def add(self, block: Block, tier: int, place: int, gained: list[tuple[Block, int]]) -> bool:
        """Count one more copy; own blocks held from now on go to `gained`. Return whether it was the first there."""
        shift = FIELD * place
        first = not block.copies >> shift & LOW
        block.copies += 1 << shift
        if not block.tiers & tier:
            self._move(block, block.tiers | tier, gained, [])
        return first

    def take(self, block: Block, tier: int, group: int | None, lost: list[int]) -> bool:
        """Count one copy less; own blocks no longer held go to `lost`. Return whether there was one."""
        place = self.places.get((tier, group))
        if place is None or not block.copies >> FIELD * place & LOW:
            return False
        block.copies -= 1 << FIELD * place
        if not block.copies >> FIELD * place & LOW:
            self._settle(block, lost)
        return True

    def drop(self, block: Block, tier: int | None, lost: list[int]) -> bool:
        """Count no copy on this tier any more, on any tier for None. Return whether there were some."""
        before = block.copies
        for (there, _), place in self.places.items():
            if tier is None or there == tier:
                block.copies &= ~(LOW << FIELD * place)
        if block.copies == before:
            return False
        self._settle(block, lost)
        return True

    def chain(self, block: Block | None) -> list[int]:
        """Return the own blocks from the beginning of the prompt to the last one complete at this block."""
        found: list[tuple[int, ...]] = []
        while block is not None:
            found.append(block.keys)
            block = block.before
        return [key for keys in reversed(found) for key in keys]

    def mask(self, key: int) -> int:
        """Return the tiers on which an own block is held, as `Tier` flags."""
        counts = self.own.get(key, 0)
        return sum(tier for i, tier in enumerate(TIERS, 1) if counts >> FIELD * i & LOW)

    def needs(self, block: Block) -> list[Block]:
        """Return the blocks before this one that its first own block touches."""
        found = []
        before = block.before
        while before is not None and before.tail:
            found.append(before)
            before = None if before.keys else before.before
        return found

    def _settle(self, block: Block, lost: list[int]) -> None:
        tiers = 0
        for (tier, _), place in self.places.items():
            if block.copies >> FIELD * place & LOW:
                tiers |= tier
        if tiers != block.tiers:
            self._move(block, tiers, [], lost)
        node: Block | None = block
        while node is not None and not node.copies and not node.children:
            del self.blocks[node.hash]
            before = node.before
            if before is not None:
                before.children -= 1
                if isinstance(before, TailBlock):
                    before.behind.remove(node)
            node = before

    def _move(self, block: Block, tiers: int, gained: list[tuple[Block, int]], lost: list[int]) -> None:
        """Turn the block from its present tiers to these, and with it all own blocks that need it."""
        was, now = self.levels[block.tiers], self.levels[tiers]
        block.tiers = tiers
        others = ALL_LEVELS
        if block.before is not None and block.before.tail:
            for each in self.needs(block):
                others &= self.levels[each.tiers]
        for i in range(len(block.keys)):
            self._turn(block, i, was & others, now & others, gained, lost)
            others = ALL_LEVELS
        if block.tail:
            # own blocks complete farther on: `others` is what the rest of each allows
            rest = [(child, others) for child in block.behind]
            while rest:
                child, others = rest.pop()
                others &= self.levels[child.tiers]
                if child.keys:
                    self._turn(child, 0, was & others, now & others, gained, lost)
                else:
                    rest += [(each, others) for each in child.behind]

    def _turn(self, block: Block, i: int, was: int, now: int, gained: list[tuple[Block, int]], lost: list[int]) -> None:
        if was == now:
            return
        key = block.keys[i]
        before = self.own.get(key, 0)
        after = before + SPREAD[now] - SPREAD[was]
        if after:
            self.own[key] = after
        else:
            del self.own[key]
        if not before & LOW and after & LOW:
            gained.append((block, i))
        elif before & LOW and not after & LOW:
            lost.append(key)
