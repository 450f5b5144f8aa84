"""Is a plug-in a value: frozen, equal to its like, hashable, picklable, and told apart by its repr?"""

import pickle
import re
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Final

from inferencesched.endpoints import Signal
from inferencesched.framework import Reader, Reads
from inferencesched.testing._calls import Broken, answered
from inferencesched.testing.failure import Check

_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


def frozen(check: Check, plugin: object) -> None:
    """Neither a parameter nor anything else can be set on it."""
    names = [each.name for each in fields(plugin)] if is_dataclass(plugin) else []
    for name in (*names, "_set_by_a_check"):
        try:
            setattr(plugin, name, answered(check, f"read {name}", partial(vars_of, plugin, name)))
        except Broken:
            continue
        check.fail(f"set {name}", "it was set", "an error: @dataclass(frozen=True, slots=True)")


def vars_of(plugin: object, name: str) -> object:
    """Return a field's value; None for what is no field."""
    return getattr(plugin, name, None)


def equality(check: Check, plugin: object) -> None:
    """A copy is equal, and has the same hash."""
    twin = answered(check, "copied it", lambda: deepcopy(plugin))
    if not (plugin == twin and twin == plugin):
        check.fail("compared it with its copy", "they differ", "equal parameters are an equal plug-in")
    one, other = (answered(check, "hashed it", partial(hash, each)) for each in (plugin, twin))
    if one != other:
        check.fail("hashed it and its copy", f"{one} and {other}", "equal hashes")


def pickled(check: Check, plugin: object) -> None:
    """It goes to another process and comes back equal. A class that no module has, as in a notebook, is let off."""
    kind = type(plugin)
    home: object = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        home = getattr(home, name, None)
    if home is not kind:
        return
    back = answered(check, "pickled and unpickled it", lambda: pickle.loads(pickle.dumps(plugin)))
    if back != plugin:
        check.fail("pickled and unpickled it", repr(back), f"a plug-in equal to {plugin!r}")


def told(check: Check, plugin: object) -> None:
    """Its repr is an experiment's label: one line, the same for its copy, without addresses."""
    text = answered(check, "repr()", lambda: repr(plugin))
    if "\n" in text or _ADDRESS.search(text):
        check.fail("repr()", repr(text), "one line without addresses: the same in the next run")
    other = answered(check, "repr() of a copy", lambda: repr(deepcopy(plugin)))
    if other != text:
        check.fail("repr() of it and its copy", f"{text} and {other}", "the same")


def declared(check: Check, plugin: object) -> None:
    """What it says that it reads is well-formed, and the same each time."""
    if not isinstance(plugin, Reader):
        return
    first, again = answered(check, "reads", lambda: (plugin.reads, plugin.reads))
    if not isinstance(first, tuple) or not all(isinstance(read, Reads) for read in first):
        check.fail("reads", repr(first), "a tuple of Reads")
    for read in first:
        if not isinstance(read.signal, Signal) or read.better not in ("", "lower", "higher"):
            check.fail("reads", repr(read), "a Signal, and 'lower', 'higher' or ''")
    names = [read.signal.name for read in first]
    if len(set(names)) != len(names):
        check.fail("reads", repr(names), "each signal once")
    if first != again:
        check.fail("reads, twice", f"{first!r} and {again!r}", "the same")


#: Name -> check, for every plug-in that is a value.
VALUE_CHECKS: Final[dict[str, Callable[[Check, object], None]]] = {
    "frozen": frozen,
    "equality": equality,
    "pickle": pickled,
    "repr": told,
    "reads": declared,
}
