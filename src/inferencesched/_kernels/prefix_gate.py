"""May a kernel read the memory of an index now? Many may at once, unless somebody changes it.

``root[GATE]`` counts those who are reading, plus `SHUT` while there is a change. Kernels run without the interpreter's
lock, so the count is changed by single steps that no thread sees half of and that no read or write moves across. Nobody
sleeps here: a reader that finds the gate shut does nothing, and its caller waits for the lock that the writer holds; a
writer, of whom that lock lets through one at a time, waits for the readers that are in, some microseconds.

A gate that is found shut by whoever holds the lock was left so by an exception: to shut it again changes nothing, and
`unshut` opens it.
"""

from inferencesched._kernels._compile import add64, address_of, kernel
from inferencesched._kernels.prefix_memory import GATE
from inferencesched._typing import IntArray

SHUT = 1 << 40


@kernel
def enter(root: IntArray) -> bool:
    """Begin to read; False where the gate is shut, and then there is nothing to leave."""
    gate = address_of(root) + 8 * GATE
    if add64(gate, 1) < SHUT:
        return True
    add64(gate, -1)
    return False


@kernel
def leave(root: IntArray) -> None:
    """Be done with reading."""
    add64(address_of(root) + 8 * GATE, -1)


@kernel
def shut(root: IntArray) -> None:
    """Let nobody in, and wait until nobody is."""
    gate = address_of(root) + 8 * GATE
    if add64(gate, 0) < SHUT:
        add64(gate, SHUT)
    while add64(gate, 0) != SHUT:
        pass


@kernel
def unshut(root: IntArray) -> None:
    """Let everybody in."""
    gate = address_of(root) + 8 * GATE
    if add64(gate, 0) >= SHUT:
        add64(gate, -SHUT)
