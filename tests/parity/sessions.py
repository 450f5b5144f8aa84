"""Who has a session: `session-affinity-filter` and `-scorer`, `session-id-binding`, `session-id-producer`.

What llm-d's plug-ins have inside is a producer here: what a spec needs is made as a configuration would. An endpoint is
named ``namespace/name``, one without a namespace by its name.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

import inferencesched as isched
from inferencesched.config.catalogue.session import SessionIdParameters, checked, source_of
from inferencesched.config.spec import PluginSpec
from inferencesched.producers.session import SessionReceipt
from tests.parity.affinity import SPECS, full, kept_as_expected, scored_as_expected
from tests.parity.cases import Case, Runner, same, unknown
from tests.parity.snapshots import cycle, plain, pool_of, request_of
from tests.parity.specs import NoPlugins, build_from, param_validation, parameters_of

BINDING = SPECS["session-binding-producer"]


class AnyPlugins(NoPlugins):
    """A workshop in which whoever is named is there, and of no kind that anybody knows."""

    def plugin(self, name: str) -> object:
        return self.plugins.get(name, self)


def target(said: Any) -> isched.Target:
    """Return a target as a case names it: by its name, or as an endpoint."""
    name = said if isinstance(said, str) else full(said)
    return isched.Target(name.removeprefix("/"), 0, 0, 1.0, 0)


def decision(request: isched.InferenceRequest, said: Mapping[str, Any] | None) -> isched.SchedulingResult | None:
    """Return a result as a case has it."""
    if said is None:
        return None
    profiles = {
        name: None if picked is None else isched.ProfileResult(tuple(map(target, picked.get("targets") or ())))
        for name, picked in (said.get("profiles") or {}).items()
    }
    return isched.SchedulingResult(request, said.get("primary", ""), profiles)


class Sessions:
    """A plug-in, the producer that it needs, and what each request has left behind."""

    def __init__(self, case: Case) -> None:
        spec = SPECS.get(case["component"], SPECS["session-affinity-filter"])
        self.plugin = build_from(spec, case)
        [need] = spec.needs(parameters_of(spec, case))
        said = msgspec.convert(need.parameters, BINDING.parameters)
        self.producer: Any = BINDING.build(said, AnyPlugins(BINDING.name))
        self.signal = need.signal
        self.endpoints = pool_of([{**each, "name": full(each)} for each in case["endpoints"]]).snapshot()
        self.receipts: dict[str, SessionReceipt] = {}

    def seen(self, step: Mapping[str, Any]) -> tuple[isched.InferenceRequest, isched.Endpoints]:
        """Return the request and its candidates, with the producer's column."""
        request, names = asked(step), step.get("candidates")
        endpoints = self.endpoints
        if names is not None:
            named = {name.removeprefix("/") for name in names}
            keep = [name in named or plain(name) in named for name in endpoints.names]
            endpoints = endpoints.where(np.array(keep, dtype=np.bool_))
        produced = self.producer.produce(request, endpoints, cycle())
        self.receipts[request.request_id] = produced.receipt
        return request, endpoints.with_columns(produced.columns)

    def pre_request(self, step: Mapping[str, Any]) -> None:
        request = asked(step)
        result = decision(request, step.get("result"))
        if result is not None:
            # nobody looked for the endpoint of a request that was not offered any
            receipt = self.receipts.get(request.request_id) or SessionReceipt(self.producer.session(request))
            self.producer.decided(receipt, result, now=0.0)


def asked(step: Mapping[str, Any]) -> isched.InferenceRequest:
    return request_of({"request": step.get("request")})


def sequence(case: Case) -> None:
    it = Sessions(case)
    for number, step in enumerate(case["steps"]):
        operation, expect = step["op"], step.get("expect", {})
        if operation == "pre_request":
            it.pre_request(step)
        elif operation == "bound_pod":
            bound = it.producer.bound(step["session"], now=0.0)
            same(
                expect["pod"], f"/{bound}" if bound and "/" not in bound else bound, f"step {number}, {step['session']}"
            )
        elif operation in ("filter", "score", "choose"):
            request, endpoints = it.seen(step)
            names = [plain(name) for name in endpoints.names]
            if operation == "filter":
                keep = it.plugin.filter(request, endpoints, cycle())
                kept_as_expected(expect, names, [name for name, kept in zip(names, keep, strict=True) if kept])
            elif operation == "score":
                scores = it.plugin.score(request, endpoints, cycle()).tolist()
                scored_as_expected(expect, dict(zip(names, scores, strict=True)), set(), case["tolerance"])
            elif "chosen" in expect:
                here = [name for name, value in zip(names, endpoints[it.signal], strict=True) if value == 1.0]
                wanted = expect["chosen"]
                same([] if wanted is None else [plain(wanted)], here, f"step {number}: chosen")
        else:
            raise unknown("operation", operation)


def response_header(case: Case) -> None:
    plugin = build_from(SPECS[case["component"]], case)
    said, served = case.get("request") or {}, case.get("target_endpoint")
    result = None if case.get("request_null") else decision(request_of(case), said.get("scheduling_result"))
    told = plugin.strategy.response_headers(result, "" if served is None else full(served))
    same(case["expect"]["response_headers"], {**(case.get("initial_response_headers") or {}), **told})


def resolve(case: Case) -> None:
    if case["params"]["function"] != "resolve_session_id":
        raise unknown("function", case["params"]["function"])
    said = msgspec.convert({"sources": case["params"]["sources"]}, SessionIdParameters)
    sources = [source_of(each, AnyPlugins("sources")) for each in said.sources]
    request = request_of({"request": None}) if case.get("request_null") else request_of(case)
    same(case["expect"]["value"], isched.session_of(request, sources))


def identify(case: Case) -> None:
    source, request = build_from(SPECS["session-id-producer"], case), request_of(case)
    session = source.session(request)
    same(case["expect"]["session_id"], session or None)
    same(session, source.identified(request).session_id, "of the request, identified")


def without_defaults(said: Any, workshop: Any) -> Any:
    """Build what binds sessions from parameters in which nothing stands for a default."""
    checked(said)
    return isched.SessionBindingProducer(
        tuple(source_of(each, workshop) for each in said.sources),
        ttl=said.eviction_ttl_seconds,
        sweep=said.eviction_sweep_seconds,
    )


def binding_parameters(case: Case) -> None:
    spec = PluginSpec("session-id-binding", ("inert",), SessionIdParameters, without_defaults)
    param_validation(spec, case)


def parameters(case: Case) -> None:
    """Build a plug-in; with it, what it needs, as a configuration does."""
    spec = SPECS[case["component"]]

    def build(said: Any, workshop: Any) -> Any:
        built = spec.build(said, workshop)
        for need in spec.needs(said):
            BINDING.build(msgspec.convert(need.parameters, BINDING.parameters), AnyPlugins(BINDING.name))
        return built

    param_validation(replace(spec, build=build), case)


RUNNERS: dict[tuple[str, str], Runner] = {
    ("session-affinity-filter", "sequence"): sequence,
    ("session-affinity-scorer", "sequence"): sequence,
    ("multicluster-session-affinity-filter", "sequence"): sequence,
    ("session-id-binding", "sequence"): sequence,
    ("session-affinity-filter", "response-header"): response_header,
    ("session-affinity-scorer", "response-header"): response_header,
    ("multicluster-session-affinity-filter", "response-header"): response_header,
    ("session-affinity-filter", "param-validation"): parameters,
    ("session-affinity-scorer", "param-validation"): parameters,
    ("multicluster-session-affinity-filter", "param-validation"): parameters,
    ("session-id-binding", "param-validation"): binding_parameters,
    ("session-id-binding", "function"): resolve,
    ("session-id-producer", "param-validation"): parameters,
    ("session-id-producer", "producer"): identify,
}
