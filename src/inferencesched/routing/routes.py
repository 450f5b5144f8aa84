"""Which route takes a request, and to which pools does it lead?

The part of the Gateway API's ``HTTPRoute`` that matters to an inference gateway: hosts, paths, methods, headers, query parameters, weighted
backends that are InferencePools, and mirrors. What is not supported is refused where it is read, never passed over.

Precedence is the Gateway API's (HTTPRouteRule, "Matches"): the most specific host; then an exact path, the longest prefix, a method, the most
headers, the most query parameters; then the oldest route, its namespace and name, and the first rule. Regular expressions are refused.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, final

import msgspec

from inferencesched.errors import InvalidInputError, ManifestError, UnknownNameError
from inferencesched.routing.split import RandomSplit, SmoothSplit, StickySplit, WeightedSplit, checked_weights

_POOLS: Final = ("inference.networking.k8s.io", "inference.networking.x-k8s.io")
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
Splitting = Literal["sticky", "random", "smooth"]


class Backend(NamedTuple):
    """Which pool, with which weight?"""

    pool: str
    weight: float = 1
    namespace: str = ""


class Mirror(NamedTuple):
    """Which pool gets a copy of which part of the requests?"""

    pool: str
    fraction: float = 1.0
    namespace: str = ""


class RouteQuery(NamedTuple):
    """What is asked? Header names are lower case."""

    path: str
    host: str = ""
    method: str = "POST"
    headers: Mapping[str, str] = _NOTHING
    query: Mapping[str, str] = _NOTHING


@dataclass(frozen=True, slots=True)
class RequestMatch:
    """What must a request be like? Everything that is named; headers and query parameters are equal to their value."""

    path: str = "/"
    exact: bool = False
    method: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    query: tuple[tuple[str, str], ...] = ()

    def takes(self, query: RouteQuery) -> bool:
        """Return whether it is. A prefix ends where an element of the path does: ``/v1`` takes ``/v1/x``, not ``/v10``."""
        if self.exact:
            if query.path != self.path:
                return False
        else:
            prefix = self.path.rstrip("/")
            if not query.path.startswith(prefix) or query.path[len(prefix) : len(prefix) + 1] not in ("", "/", "?"):
                return False
        if self.method and query.method != self.method:
            return False
        return all(query.headers.get(name) == value for name, value in self.headers) and all(
            query.query.get(name) == value for name, value in self.query
        )

    @property
    def rank(self) -> tuple[bool, int, bool, int, int]:
        """How specific is it? The greater one counts."""
        return self.exact, len(self.path), bool(self.method), len(self.headers), len(self.query)


@dataclass(frozen=True, slots=True)
class RouteRule:
    """Whom does a rule take, and where to? ``set_headers`` are put on the request, an empty value says "remove"."""

    backends: tuple[Backend, ...]
    matches: tuple[RequestMatch, ...] = (RequestMatch(),)
    mirrors: tuple[Mirror, ...] = ()
    set_headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked_weights(_weights(self.backends), "backends")


@dataclass(frozen=True, slots=True)
class HTTPRoute:
    """Which rules hold for which hosts? No host is every host; ``*.example.com`` is whatever ends like that. ``parents`` is data only."""

    name: str
    rules: tuple[RouteRule, ...]
    hosts: tuple[str, ...] = ()
    namespace: str = "default"
    created: float = 0.0
    parents: tuple[str, ...] = ()


class RouteMatch(NamedTuple):
    """Which rule of which route takes it, and what splits between its backends?"""

    route: str
    rule: int
    backends: tuple[Backend, ...]
    mirrors: tuple[Mirror, ...]
    split: WeightedSplit
    set_headers: Mapping[str, str] = _NOTHING


class _Entry(NamedTuple):
    match: RequestMatch
    answer: RouteMatch


@final
class RouteTable:
    """Which route takes a request?

    Parameters
    ----------
    routes: in any order.
    split: how a rule's backends share its requests: ``sticky`` by the conversation, ``random`` as proxies do, ``smooth`` exactly.

    Cost: 1 us and 0.2 us for each rule that is looked at before the one that takes it.

    >>> table = RouteTable([HTTPRoute("main", (RouteRule((Backend("gemma", 9), Backend("gemma-new", 1))),), ("example.com",))])
    >>> table.match(RouteQuery("/completions", "example.com")).backends[0].pool
    'gemma'
    >>> table.match(RouteQuery("/completions", "example.org")) is None
    True
    """

    __slots__ = ("_exact", "_wild", "divides", "headers", "routes")

    def __init__(self, routes: Iterable[HTTPRoute], *, split: Splitting = "sticky") -> None:
        if split not in ("sticky", "random", "smooth"):
            raise UnknownNameError("split", split, ("sticky", "random", "smooth"))
        self.routes = tuple(sorted(routes, key=lambda route: (route.created, route.namespace, route.name)))
        rules = [rule for route in self.routes for rule in route.rules]
        #: Which headers does any rule look at?
        self.headers = frozenset(name for rule in rules for match in rule.matches for name, _ in match.headers)
        #: Has any rule several pools to choose from?
        self.divides = any(len(_weights(rule.backends)) > 1 for rule in rules)
        named: dict[str, list[_Entry]] = {}
        for route in self.routes:
            for i, rule in enumerate(route.rules):
                answer = RouteMatch(route.name, i, rule.backends, rule.mirrors, _split(rule, split), rule.set_headers)
                for host in route.hosts or ("*",):
                    named.setdefault(host.lower(), []).extend(_Entry(match, answer) for match in rule.matches)
        ranked = {
            host: tuple(sorted(entries, key=lambda entry: entry.match.rank, reverse=True))
            for host, entries in named.items()
        }
        self._exact = {host: entries for host, entries in ranked.items() if not host.startswith("*")}
        wild = ((host[1:], entries) for host, entries in ranked.items() if host.startswith("*"))
        self._wild = tuple(sorted(wild, key=lambda pair: len(pair[0]), reverse=True))

    def match(self, query: RouteQuery) -> RouteMatch | None:
        """Return the rule that takes a request; None where none does. A port behind the host does not count."""
        host = query.host.lower()
        if ":" in host and not host.endswith("]"):
            host = host.rpartition(":")[0]
        entries = self._exact.get(host)
        found = None if entries is None else _first(entries, query)
        if found is not None:
            return found
        for suffix, entries in self._wild:
            if host.endswith(suffix) and (not suffix or len(host) > len(suffix)):
                found = _first(entries, query)
                if found is not None:
                    return found
        return None


def _first(entries: Sequence[_Entry], query: RouteQuery) -> RouteMatch | None:
    return next((answer for match, answer in entries if match.takes(query)), None)


def _weights(backends: tuple[Backend, ...]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for backend in backends:
        weights[backend.pool] = weights.get(backend.pool, 0.0) + backend.weight
    return weights


def _split(rule: RouteRule, split: Splitting) -> WeightedSplit:
    weights = _weights(rule.backends)
    if split == "sticky":
        return StickySplit(weights)
    return RandomSplit(weights) if split == "random" else SmoothSplit(weights)


# -- manifests ---------------------------------------------------------------------------------------


class _Parent(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    namespace: str = ""


class _PathMatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    type: Literal["Exact", "PathPrefix"] = "PathPrefix"
    value: str = "/"


class _Equal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    name: str
    value: str
    type: Literal["Exact"] = "Exact"


class _RequestMatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    path: _PathMatch = _PathMatch()
    method: str = ""
    headers: list[_Equal] = []
    query_params: list[_Equal] = []


class _BackendRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    name: str
    group: str = ""
    kind: str = "Service"
    namespace: str = ""
    port: int | None = None
    weight: int = 1


class _Fraction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    numerator: int
    denominator: int = 100


class _Mirror(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    backend_ref: _BackendRef
    percent: int | None = None
    fraction: _Fraction | None = None


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    name: str
    value: str


class _Modifier(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    set: list[_Header] = []
    add: list[_Header] = []
    remove: list[str] = []


class _Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    type: Literal["RequestMirror", "RequestHeaderModifier"]
    request_mirror: _Mirror | None = None
    request_header_modifier: _Modifier | None = None


class _Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    backend_refs: list[_BackendRef] = []
    matches: list[_RequestMatch] = []
    filters: list[_Filter] = []
    name: str = ""
    timeouts: dict[str, str] = {}


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    rules: list[_Rule]
    hostnames: list[str] = []
    parent_refs: list[_Parent] = []


def route_of(where: str, name: str, namespace: str, created: float, spec: object) -> HTTPRoute:
    """Return the route that a manifest's ``spec`` is. Errors: `ManifestError`, each with its path behind `where`."""
    try:
        said = msgspec.convert(spec, _Spec)
    except (msgspec.ValidationError, RecursionError, UnicodeError) as error:
        message, _, path = str(error).partition(" - at `")
        raise ManifestError(f"{where}: $.spec{path.rstrip('`').removeprefix('$')}", _short(spec), message) from error
    rules = tuple(_rule(f"{where}: $.spec.rules[{i}]", rule) for i, rule in enumerate(said.rules))
    if not rules:
        raise ManifestError(f"{where}: $.spec.rules", [], "at least one rule")
    for host in said.hostnames:
        if not host or "*" in host.removeprefix("*."):
            raise ManifestError(f"{where}: $.spec.hostnames", host, "a host, or *. and a host")
    parents = tuple(f"{parent.namespace or namespace}/{parent.name}" for parent in said.parent_refs)
    return HTTPRoute(name, rules, tuple(said.hostnames), namespace, created, parents)


def _rule(where: str, rule: _Rule) -> RouteRule:
    if not rule.backend_refs:
        raise ManifestError(f"{where}.backendRefs", [], "at least one InferencePool")
    backends = tuple(
        Backend(_pool(f"{where}.backendRefs[{i}]", ref), ref.weight, ref.namespace)
        for i, ref in enumerate(rule.backend_refs)
    )
    mirrors: list[Mirror] = []
    headers: dict[str, str] = {}
    for i, each in enumerate(rule.filters):
        here = f"{where}.filters[{i}]"
        if each.request_mirror is not None:
            mirrors.append(_mirror(here, each.request_mirror))
        elif each.request_header_modifier is not None:
            change = each.request_header_modifier
            headers.update((header.name.lower(), header.value) for header in (*change.set, *change.add))
            headers.update((name.lower(), "") for name in change.remove)
        else:
            raise ManifestError(here, each.type, f"the field of its type, {each.type[0].lower()}{each.type[1:]}")
    matches = tuple(
        RequestMatch(
            match.path.value,
            match.path.type == "Exact",
            match.method,
            tuple((header.name.lower(), header.value) for header in match.headers),
            tuple((param.name, param.value) for param in match.query_params),
        )
        for match in rule.matches
    )
    for match in matches:
        if not match.path.startswith("/"):
            raise ManifestError(f"{where}.matches.path.value", match.path, "a path that begins with /")
    try:
        return RouteRule(backends, matches or (RequestMatch(),), tuple(mirrors), headers)
    except InvalidInputError as error:
        raise ManifestError(f"{where}.{error.parameter}", error.value, error.allowed) from error


def _mirror(where: str, mirror: _Mirror) -> Mirror:
    if mirror.percent is not None and mirror.fraction is not None:
        raise ManifestError(f"{where}.requestMirror", "percent and fraction", "one of them")
    part = 1.0
    if mirror.percent is not None:
        part = mirror.percent / 100
    elif mirror.fraction is not None:
        below = mirror.fraction.denominator
        part = mirror.fraction.numerator / below if below > 0 else inf
    if not 0 <= part <= 1:
        raise ManifestError(f"{where}.requestMirror", part, "a part of 0 to 1")
    ref = mirror.backend_ref
    return Mirror(_pool(f"{where}.requestMirror.backendRef", ref), part, ref.namespace)


def _pool(where: str, ref: _BackendRef) -> str:
    if ref.kind != "InferencePool" or ref.group not in _POOLS:
        raise ManifestError(where, f"{ref.group or 'core'} {ref.kind}", f"an InferencePool of {_POOLS[0]}")
    return ref.name


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
