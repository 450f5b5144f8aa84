"""Does what is known of an endpoint hang together, and does the index say the same? For tests: it is slow."""

from collections import Counter

import numpy as np

from inferencesched.prefix._holdings import FIELD, LOW, TIERS, Block, Holdings
from inferencesched.prefix.index import PrefixIndex


def audit(holdings: Holdings, index: PrefixIndex, slot: int, own: int) -> None:
    """Recount everything from the blocks alone; raises AssertionError where something differs."""
    blocks = holdings.blocks
    children = Counter(id(block.before) for block in blocks.values() if block.before is not None)
    for name, block in blocks.items():
        assert block.hash == name
        assert block.before is None or blocks.get(block.before.hash) is block.before, "a parent is known"
        assert block.copies or block.children, "a block is known while it is held, or one behind it is known"
        assert block.children == children[id(block)]
        behind = [each for each in blocks.values() if each.before is block] if block.tail else []
        assert sorted(map(id, block.behind)) == sorted(map(id, behind))
        assert block.tiers == sum({tier for tier, count in _copies(holdings, block) if count})
        assert len(block.tail) in range(0, 4 * own, 4)
        assert block.key == (block.keys[-1] if block.keys else block.before.key if block.before else None)
        assert block.before is None or block.seed == block.before.seed
    expected: Counter[int] = Counter()
    for block in blocks.values():
        for i, key in enumerate(block.keys):
            levels = holdings.levels[block.tiers]
            for each in holdings.needs(block) if i == 0 else ():
                levels &= holdings.levels[each.tiers]
            for level in range(5):
                expected[key] += (levels >> level & 1) << FIELD * level
    assert holdings.own == {key: counts for key, counts in expected.items() if counts}
    held = {key for key, counts in holdings.own.items() if counts & LOW}
    assert index.blocks(slot) == len(held), "the index holds what is held"
    for block in blocks.values():
        chain = holdings.chain(block)
        if chain and not block.children:
            depth = next((i for i, key in enumerate(chain) if key not in held), len(chain))
            assert index.match(np.array(chain, dtype=np.uint64))[slot] == depth


def _copies(holdings: Holdings, block: Block) -> list[tuple[int, int]]:
    assert set(TIERS) >= {tier for tier, _ in holdings.places}
    return [(tier, block.copies >> FIELD * place & LOW) for (tier, _), place in holdings.places.items()]
