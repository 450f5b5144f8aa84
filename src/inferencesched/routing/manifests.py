"""What do an operator's manifests say of pools, objectives, models and routes?

Kubernetes objects as mappings (``adapters.yaml`` reads them from files); no cluster is asked. Reading is strict: an unknown field, a wrong
type or an impossible weight is a `ManifestError` that names kind, object and path. ``status`` and what an API server adds to
``metadata`` are passed over.

Sources: the Gateway API Inference Extension, ``InferencePool`` v1 and v1alpha2, ``InferenceObjective`` and ``InferenceModelRewrite``
v1alpha2, ``InferenceModel`` v1alpha2; the Gateway API, ``HTTPRoute`` v1.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

import msgspec

from inferencesched.errors import ManifestError
from inferencesched.routing.objectives import (
    InferenceObjective,
    ModelMatch,
    ModelRewrite,
    PoolManifest,
    RewriteRule,
    WeightedModel,
)
from inferencesched.routing.routes import HTTPRoute, route_of

GROUPS: Final = ("inference.networking.k8s.io", "inference.networking.x-k8s.io")
_GATEWAY: Final = "gateway.networking.k8s.io"
#: What the older InferenceModel called priorities. Source: its v1alpha2 API; the numbers keep their order, and sheddable is below 0.
CRITICALITY: Final[Mapping[str, int]] = {"Critical": 1, "Standard": 0, "Sheddable": -1}

DEFAULT_NAMESPACE: Final = "default"


class Manifests(NamedTuple):
    """What was read, in the order in which it stood there."""

    pools: tuple[PoolManifest, ...] = ()
    objectives: tuple[InferenceObjective, ...] = ()
    rewrites: tuple[ModelRewrite, ...] = ()
    routes: tuple[HTTPRoute, ...] = ()


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    namespace: str = DEFAULT_NAMESPACE
    creation_timestamp: Any = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _Ref(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    name: str
    group: str = ""
    kind: str = "InferencePool"
    namespace: str | None = None


class _Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    number: int


class _PickerPort(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    number: int = 9002


class _PickerRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    name: str
    group: str = ""
    kind: str = "Service"
    port: _PickerPort | None = None
    port_number: int | None = None
    failure_mode: Literal["FailOpen", "FailClose"] = "FailClose"


class _Pool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    selector: dict[str, Any]
    target_ports: list[_Port] = []
    target_port_number: int | None = None
    endpoint_picker_ref: _PickerRef | None = None
    extension_ref: _PickerRef | None = None
    app_protocol: str = ""


class _Objective(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pool_ref: _Ref
    priority: int | None = None


class _Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    value: str
    type: Literal["Exact"] = "Exact"


class _Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    model: _Model | None = None


class _Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    model_rewrite: str
    weight: int | None = None


class _Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    targets: list[_Target]
    matches: list[_Match] = []


class _Rewrite(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    rules: list[_Rule]
    pool_ref: _Ref | None = None


class _TargetModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    name: str
    weight: int | None = None


class _Legacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    model_name: str
    pool_ref: _Ref
    criticality: Literal["Critical", "Standard", "Sheddable"] | None = None
    target_models: list[_TargetModel] = []


def load_manifests(
    documents: Mapping[str, Any] | Iterable[Mapping[str, Any]], *, unknown: Literal["refuse", "skip"] = "refuse"
) -> Manifests:
    """Return what one document, or several, say. A ``List`` is its items.

    Documents of another kind are refused, or passed over with ``unknown="skip"``. Errors: `ManifestError`.

    >>> load_manifests({"apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceObjective",
    ...     "metadata": {"name": "chat"}, "spec": {"priority": 10, "poolRef": {"name": "llama"}}}).objectives[0].priority
    10
    """
    pools: list[PoolManifest] = []
    objectives: list[InferenceObjective] = []
    rewrites: list[ModelRewrite] = []
    routes: list[HTTPRoute] = []
    if not isinstance(documents, Iterable):
        raise ManifestError("documents", documents, "a mapping, or several")
    for document in [documents] if isinstance(documents, Mapping) else documents:
        if not isinstance(document, Mapping):
            raise ManifestError("document", document, "a mapping")
        if document.get("kind") == "List":
            items = document.get("items")
            if not isinstance(items, (list, tuple)):
                raise ManifestError("List: $.items", items, "a list of documents")
            inner = load_manifests(items, unknown=unknown)
            pools += inner.pools
            objectives += inner.objectives
            rewrites += inner.rewrites
            routes += inner.routes
            continue
        kind, group = document.get("kind"), str(document.get("apiVersion", "")).partition("/")[0]
        head = _head(document, str(kind))
        if group in GROUPS and kind == "InferencePool":
            pools.append(_pool(head, document))
        elif group in GROUPS and kind == "InferenceObjective":
            objectives.append(_objective(head, document))
        elif group in GROUPS and kind == "InferenceModelRewrite":
            rewrites.append(_rewrite(head, document))
        elif group in GROUPS and kind == "InferenceModel":
            objective, rewrite = _legacy(head, document)
            objectives.append(objective)
            rewrites.append(rewrite)
        elif group == _GATEWAY and kind == "HTTPRoute":
            routes.append(route_of(head.where, head.name, head.namespace, head.created, document.get("spec")))
        elif unknown == "refuse":
            allowed = f"InferencePool, InferenceObjective, InferenceModelRewrite or InferenceModel of {GROUPS[0]}, or HTTPRoute of {_GATEWAY}"
            raise ManifestError("kind", f"{document.get('apiVersion')} {kind}", allowed)
    return Manifests(tuple(pools), tuple(objectives), tuple(rewrites), tuple(routes))


def from_gie_manifest(document: Mapping[str, Any]) -> Manifests:
    """Return what one manifest of the Gateway API Inference Extension says. Errors: `ManifestError`."""
    return load_manifests(document)


def route_from_manifest(document: Mapping[str, Any]) -> HTTPRoute:
    """Return the route of one ``HTTPRoute`` document. Errors: `ManifestError`."""
    routes = load_manifests(document).routes
    if len(routes) != 1:
        raise ManifestError("kind", document.get("kind"), "HTTPRoute")
    return routes[0]


def merge(platform: Manifests, workload: Manifests) -> Manifests:
    """Return what an operator's and a workload owner's manifests say together.

    Pools and routes are the platform's word: of two with the same name, the platform's counts. Objectives and rewrites are the
    workload's: there the workload's counts. What only one of them has is kept.
    """
    return Manifests(
        _united(platform.pools, workload.pools),
        _united(workload.objectives, platform.objectives),
        _united(workload.rewrites, platform.rewrites),
        _united(platform.routes, workload.routes),
    )


def _united(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
    known = {(each.namespace, each.name) for each in first}
    return (*first, *(each for each in second if (each.namespace, each.name) not in known))


class _Head(NamedTuple):
    where: str
    name: str
    namespace: str
    created: float


def _head(document: Mapping[str, Any], kind: str) -> _Head:
    meta = _read(_Meta, f"{kind}: $.metadata", document.get("metadata"))
    where = f"{kind} {meta.namespace}/{meta.name}"
    if not meta.name:
        raise ManifestError(f"{where}: $.metadata.name", meta.name, "a name")
    created = meta.creation_timestamp
    if created is None:
        return _Head(where, meta.name, meta.namespace, 0.0)
    try:
        at = created if isinstance(created, datetime) else datetime.fromisoformat(created)
        return _Head(where, meta.name, meta.namespace, at.timestamp())
    except (TypeError, ValueError, OverflowError) as error:
        raise ManifestError(f"{where}: $.metadata.creationTimestamp", created, "a time of RFC 3339") from error


def _read(shape: type[Any], where: str, value: object) -> Any:
    try:
        return msgspec.convert(value, shape)
    except (msgspec.ValidationError, RecursionError, UnicodeError) as error:
        said, _, path = str(error).partition(" - at `")
        raise ManifestError(where + path.rstrip("`").removeprefix("$"), _short(value), said) from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _spec(shape: type[Any], head: _Head, document: Mapping[str, Any]) -> Any:
    return _read(shape, f"{head.where}: $.spec", document.get("spec"))


def _pool_name(ref: _Ref, head: _Head) -> str:
    if ref.kind != "InferencePool":
        raise ManifestError(f"{head.where}: $.spec.poolRef.kind", ref.kind, "InferencePool")
    return ref.name


def _pool(head: _Head, document: Mapping[str, Any]) -> PoolManifest:
    spec: _Pool = _spec(_Pool, head, document)
    nested = set(spec.selector) == {"matchLabels"} and isinstance(spec.selector["matchLabels"], Mapping)
    said = spec.selector["matchLabels"] if nested else spec.selector
    labels = _read(dict[str, str], f"{head.where}: $.spec.selector", said)
    if not labels:
        raise ManifestError(f"{head.where}: $.spec.selector", labels, "at least one label")
    ports = tuple(port.number for port in spec.target_ports) or (
        () if spec.target_port_number is None else (spec.target_port_number,)
    )
    if not ports:
        raise ManifestError(f"{head.where}: $.spec.targetPorts", [], "at least one port")
    for port in ports:
        if not 1 <= port <= 65535:
            raise ManifestError(f"{head.where}: $.spec.targetPorts", port, "1 to 65535")
    picker = spec.endpoint_picker_ref or spec.extension_ref
    number = 9002
    if picker is not None:
        number = picker.port.number if picker.port is not None else picker.port_number or 9002
    return PoolManifest(
        head.name,
        namespace=head.namespace,
        labels=labels,
        ports=ports,
        picker="" if picker is None else picker.name,
        picker_port=number,
        fail_open=picker is not None and picker.failure_mode == "FailOpen",
    )


def _objective(head: _Head, document: Mapping[str, Any]) -> InferenceObjective:
    spec: _Objective = _spec(_Objective, head, document)
    return InferenceObjective(
        head.name, priority=spec.priority or 0, pool=_pool_name(spec.pool_ref, head), namespace=head.namespace
    )


def _rewrite(head: _Head, document: Mapping[str, Any]) -> ModelRewrite:
    spec: _Rewrite = _spec(_Rewrite, head, document)
    if not spec.rules:
        raise ManifestError(f"{head.where}: $.spec.rules", [], "at least one rule")
    rules = []
    for i, rule in enumerate(spec.rules):
        where = f"{head.where}: $.spec.rules[{i}]"
        models = tuple(match.model.value for match in rule.matches if match.model is not None)
        if rule.matches and len(models) != len(rule.matches):
            raise ManifestError(f"{where}.matches", len(rule.matches), "each with a model, or no matches at all")
        targets = tuple((target.model_rewrite, target.weight) for target in rule.targets)
        rules.append(RewriteRule(ModelMatch(models), _targets(targets, f"{where}.targets")))
    pool = "" if spec.pool_ref is None else _pool_name(spec.pool_ref, head)
    return ModelRewrite(head.name, tuple(rules), namespace=head.namespace, pool=pool, created=head.created)


def _targets(targets: tuple[tuple[str, int | None], ...], where: str) -> tuple[WeightedModel, ...]:
    if not targets:
        raise ManifestError(where, [], "at least one target")
    given = [weight for _, weight in targets if weight is not None]
    if given and len(given) != len(targets):
        raise ManifestError(where, [weight for _, weight in targets], "a weight for every target, or for none")
    for name, weight in targets:
        if not name:
            raise ManifestError(where, name, "the name of a model")
        if weight is not None and not 0 <= weight <= 1_000_000:
            raise ManifestError(f"{where} {name!r}", weight, "a weight of 0 to 1,000,000")
    if given and not any(given):
        raise ManifestError(where, given, "weights with a sum above 0")
    return tuple(WeightedModel(name, weight) for name, weight in targets)


def _legacy(head: _Head, document: Mapping[str, Any]) -> tuple[InferenceObjective, ModelRewrite]:
    """Translate an InferenceModel: its criticality is an objective of its own name, its targets are a rewrite."""
    spec: _Legacy = _spec(_Legacy, head, document)
    pool = _pool_name(spec.pool_ref, head)
    priority = CRITICALITY[spec.criticality] if spec.criticality is not None else 0
    targets = tuple((target.name, target.weight) for target in spec.target_models) or ((spec.model_name, None),)
    rule = RewriteRule(ModelMatch((spec.model_name,)), _targets(targets, f"{head.where}: $.spec.targetModels"))
    return (
        InferenceObjective(head.name, priority=priority, pool=pool, namespace=head.namespace, model=spec.model_name),
        ModelRewrite(head.name, (rule,), namespace=head.namespace, pool=pool, created=head.created),
    )
