"""Under which name does a configuration know a plug-in, and how is it made?

A `PluginSpec` is data: the name that a configuration calls ``type``, the kinds of plug-in it is, the parameters it takes, how it is built from them and
read back, and which producers it cannot do without. The catalogue is a tuple of them; so is somebody else's package.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import msgspec

from inferencesched.endpoints import Signal

#: What a plug-in does. From ``inert`` on, this library reads, checks and writes it and leaves it to the gateway.
Kind = Literal[
    "filter",
    "scorer",
    "picker",
    "profile-handler",
    "producer",
    "decider",
    "assigner",
    "stage",
    "admitter",
    "inert",
    "parser",
    "source",
    "extractor",
    "discovery",
    "saturation-detector",
    "fairness-policy",
    "ordering-policy",
    "usage-limit-policy",
]
Stability = Literal["beta", "alpha", "deprecated"]

#: A parameter of this type names another plug-in of the same configuration, which is then built first.
PluginRef = Annotated[str, msgspec.Meta(extra={"plugin_ref": True}, extra_json_schema={"x-plugin-ref": True})]


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What may a configuration say of a plug-in? The base of every parameter table: camelCase names, no others.

    A subclass repeats ``frozen=True, kw_only=True, rename="camel"``; what a table cannot say (ranges that depend on each
    other) belongs in the built plug-in's own checks.
    """


class Nothing(Parameters, frozen=True, kw_only=True, rename="camel"):
    """What if a plug-in takes no parameters?"""


class Opaque(msgspec.Struct, frozen=True):
    """What if the parameters are somebody else's to read? Any mapping, kept as it is."""

    values: dict[str, Any] = {}


class Workshop(Protocol):
    """What may a build ask for beside its parameters?"""

    @property
    def name(self) -> str:
        """Under which name does the configuration have the plug-in?"""
        ...

    def plugin(self, name: str) -> object:
        """Return the plug-in of that name, built before; `ConfigError` for one that is not there."""
        ...


@runtime_checkable
class Demand(Protocol):
    """What do the others of a configuration want? Optional, beside `Workshop`: for what is only made where somebody asks."""

    def wanted(self, signal: Signal) -> bool:
        """Return whether a plug-in reads this column, of the one that is being made or of no one in particular."""
        ...


@dataclass(frozen=True, slots=True)
class Need:
    """Which column must some producer fill, and which type of producer is made where none does?"""

    signal: Signal
    producer_type: str
    parameters: Mapping[str, Any] | None = None
    required: bool = True


def no_needs(parameters: Any) -> tuple[Need, ...]:
    """Return that a plug-in needs no producer."""
    return ()


def no_parts(plugin: Any) -> Mapping[str, object]:
    """Return that a plug-in holds no others."""
    return {}


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """What is a plug-in's entry in a catalogue?

    ``name`` is the configuration's ``type``. ``build(parameters, workshop)`` makes it, `read(plugin)` returns its parameters for dumping; ``made`` is the class of what
    is built (None where nothing of its own is, as for a deprecated name of another type). ``needs(parameters)`` names the columns that
    producers must fill. ``instead`` is what to use in place of a deprecated type. ``origin`` is ``llm-d`` for the
    reference's names and ``own`` for ours. ``parts(plugin)`` is for a plug-in that holds other plug-ins: what it holds, by the
    YAML name of the `PluginRef` parameter (``"filter"``, ``"deciders.prefill"``), a tuple for a list, None for none; ``read`` may
    say anything in those places.
    """

    name: str
    kinds: tuple[Kind, ...]
    parameters: type[msgspec.Struct]
    build: Callable[[Any, Workshop], object]
    made: type | None = None
    read: Callable[[Any], msgspec.Struct] | None = None
    needs: Callable[[Any], tuple[Need, ...]] = no_needs
    stability: Stability = "beta"
    instead: str = ""
    origin: Literal["llm-d", "own"] = "llm-d"
    parts: Callable[[Any], Mapping[str, object]] = no_parts
