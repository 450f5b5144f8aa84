"""Which endpoints carry the right labels, and so play the right role?

Labels are set when an endpoint joins: they are never stale, and no observation changes them. Names and role sets are
those of llm-d's router (``pkg/epp/framework/plugins/scheduling/filter/bylabel``), selectors those of Kubernetes.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final, Literal, get_args

import numpy as np

from inferencesched._typing import BoolArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.framework import CycleState, Reads
from inferencesched.labels import LabelColumn
from inferencesched.request import InferenceRequest

Role = Literal["decode", "prefill", "encode"]
Operator = Literal["In", "NotIn", "Exists", "DoesNotExist"]

#: The label that says what a server does in a disaggregated pool.
ROLE_LABEL: Final = "llm-d.ai/role"
#: Which values of it take part in which stage. A server without one decodes: it does everything.
ROLES: Final[Mapping[Role, frozenset[str]]] = MappingProxyType(
    {
        "decode": frozenset(("decode", "prefill-decode", "both", "encode-prefill-decode")),
        "prefill": frozenset(("prefill", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode")),
        "encode": frozenset(("encode", "encode-prefill", "encode-prefill-decode")),
    }
)

_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def chosen(column: LabelColumn, values: Iterable[bool], missing: bool) -> BoolArray:
    """Return who is kept, ``bool[E]``, from an answer for each value and one for those without."""
    table: BoolArray = np.array([*values, missing], dtype=np.bool_)
    return table[column.codes]


@dataclass(frozen=True, slots=True)
class LabelFilter:
    """Does the endpoint's label have one of these values?

    With `allow_missing` an endpoint without the label passes too. Reads labels only, which are never stale.
    Source: llm-d router's ``by-label``, which it has given up for ``label-selector-filter``. Errors: `InvalidInputError` for an
    empty label, and for no values where nobody without the label passes: that would keep nobody ever.

    >>> LabelFilter("accelerator", ("H100", "H200"))
    LabelFilter(label='accelerator', values=('H100', 'H200'), allow_missing=False)
    """

    label: str
    values: tuple[str, ...] = ()
    allow_missing: bool = False

    def __post_init__(self) -> None:
        if not self.label:
            raise InvalidInputError("label", self.label, "the key of a label")
        given: object = self.values
        if isinstance(given, str):
            raise InvalidInputError("values", self.values, "a tuple of values, not one")
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values and not self.allow_missing:
            raise InvalidInputError("values", self.values, "at least one, unless endpoints without the label pass")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? None: labels."""
        return ()

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``. Cost: a look-up a distinct value, and one of all endpoints."""
        column = endpoints.label_column(self.label)
        # an absent label is an empty one to the reference, which matters where somebody lists the empty value
        missing = self.allow_missing or "" in self.values
        return chosen(column, (value in self.values for value in column.values), missing)


@dataclass(frozen=True, slots=True)
class _RoleFilter:
    """What the three filters of roles have in common."""

    label: str = ROLE_LABEL
    role: ClassVar[Role]

    def __post_init__(self) -> None:
        if not self.label:
            raise InvalidInputError("label", self.label, "the key of a label")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? None: labels."""
        return ()

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``."""
        column = endpoints.label_column(self.label)
        return chosen(column, (value in ROLES[self.role] for value in column.values), self.role == "decode")

    def why_dropped(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState, position: int) -> str:
        """Return its role."""
        role = endpoints.labels(position).get(self.label)
        return f"no label {self.label}" if role is None else f"its role is {role!r}"


@dataclass(frozen=True, slots=True)
class DecodeFilter(_RoleFilter):
    """Does the endpoint decode?

    By the label ``llm-d.ai/role``, whose values name one stage or several (`ROLES`); an endpoint without it does everything, so
    it decodes. Reads labels only, which are never stale. Source: llm-d router's ``decode-filter``.

    >>> from inferencesched import CycleState, InferencePool, InferenceRequest
    >>> pool = InferencePool()
    >>> pool.join("a", labels={"llm-d.ai/role": "prefill"}); pool.join("b"); pool.join("c", labels={"llm-d.ai/role": "both"})
    >>> request, cycle = InferenceRequest(request_id="r"), CycleState(0.0, np.random.default_rng(0), 0)
    >>> DecodeFilter().filter(request, pool.snapshot(), cycle)
    array([False,  True,  True])
    >>> PrefillFilter().filter(request, pool.snapshot(), cycle)
    array([ True, False,  True])
    """

    role: ClassVar[Role] = "decode"


@dataclass(frozen=True, slots=True)
class PrefillFilter(_RoleFilter):
    """Does the endpoint compute prompts for others?

    By the label ``llm-d.ai/role``, as `DecodeFilter`; an endpoint without it does not. Reads labels only, which are never stale.
    Source: llm-d router's ``prefill-filter``.
    """

    role: ClassVar[Role] = "prefill"


@dataclass(frozen=True, slots=True)
class EncodeFilter(_RoleFilter):
    """Does the endpoint encode pictures, videos and sounds for others?

    By the label ``llm-d.ai/role``, as `DecodeFilter`; an endpoint without it does not. Reads labels only, which are never stale.
    Source: llm-d router's ``encode-filter``.
    """

    role: ClassVar[Role] = "encode"


@dataclass(frozen=True, slots=True)
class LabelRequirement:
    """What is asked of one label? Operators are those of Kubernetes.

    ``In`` asks for one of `values`, ``NotIn`` for none of them (also met by an endpoint without the label), ``Exists`` and
    ``DoesNotExist`` for the label itself, without values. Errors: `InvalidInputError`, also for keys and values that Kubernetes
    would not take.

    >>> LabelRequirement("tier", "In", ("a", "b")).met_by("c")
    False
    >>> LabelRequirement("tier", "NotIn", ("a", "b")).met_by(None)
    True
    """

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given: object = self.values
        if isinstance(given, str):
            raise InvalidInputError("values", self.values, "a tuple of values, not one")
        object.__setattr__(self, "values", tuple(self.values))
        if not _is_key(self.key):
            raise InvalidInputError("key", self.key, "a label key as Kubernetes has them: [prefix/]name")
        if self.operator not in get_args(Operator):
            raise UnknownNameError("operator", self.operator, get_args(Operator))
        if (self.operator in ("In", "NotIn")) != bool(self.values):
            allowed = "at least one" if self.operator in ("In", "NotIn") else "none"
            raise InvalidInputError("values", self.values, f"{allowed} with {self.operator}")
        for value in self.values:
            if not _is_value(value):
                raise InvalidInputError("values", value, "label values as Kubernetes has them: at most 63 characters")

    def met_by(self, value: str | None) -> bool:
        """Is it met by this value of the label, None where there is none?"""
        if self.operator == "In":
            return value is not None and value in self.values
        if self.operator == "NotIn":
            return value is None or value not in self.values
        return (value is not None) == (self.operator == "Exists")


@dataclass(frozen=True, slots=True)
class LabelSelectorFilter:
    """Do the endpoint's labels match a selector of Kubernetes?

    All of `match_labels` (pairs, or a mapping) and all of `match_expressions`; a selector that asks for nothing matches all.
    Reads labels only, which are never stale. Source: llm-d router's ``label-selector-filter``, once ``by-label-selector``.

    >>> LabelSelectorFilter({"app": "vllm"}, (LabelRequirement("draining", "DoesNotExist"),)).match_labels
    (('app', 'vllm'),)
    """

    match_labels: tuple[tuple[str, str], ...] = ()
    match_expressions: tuple[LabelRequirement, ...] = ()

    def __post_init__(self) -> None:
        given: object = self.match_labels
        pairs = given.items() if isinstance(given, Mapping) else self.match_labels
        object.__setattr__(self, "match_labels", tuple(sorted((key, value) for key, value in pairs)))
        object.__setattr__(self, "match_expressions", tuple(self.match_expressions))
        for key, value in self.match_labels:
            if not _is_key(key):
                raise InvalidInputError("match_labels", key, "a label key as Kubernetes has them: [prefix/]name")
            if not _is_value(value):
                raise InvalidInputError("match_labels", value, "a label value as Kubernetes has them")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? None: labels."""
        return ()

    @property
    def requirements(self) -> tuple[LabelRequirement, ...]:
        """What is asked, one label a time?"""
        plain = (LabelRequirement(key, "In", (value,)) for key, value in self.match_labels)
        return (*plain, *self.match_expressions)

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``. Cost: for each requirement, a look-up a distinct value, and one of all endpoints."""
        keep: BoolArray = np.ones(len(endpoints), dtype=np.bool_)
        for key, value in self.match_labels:
            keep &= endpoints.label(key, value)
        for each in self.match_expressions:
            column = endpoints.label_column(each.key)
            keep &= chosen(column, map(each.met_by, column.values), each.met_by(None))
        return keep


def _is_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    named = len(name) <= 63 and _NAME.fullmatch(name) is not None
    return named and (not slash or (len(prefix) <= 253 and _PREFIX.fullmatch(prefix) is not None))


def _is_value(value: str) -> bool:
    return len(value) <= 63 and (not value or _NAME.fullmatch(value) is not None)
