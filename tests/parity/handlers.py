"""Handlers, deciders and what they put in headers; a profile, and the scheduler round it.

Every plug-in is built by its name in the catalogue. llm-d's handlers see endpoints in the results of profiles; ours see them among
the candidates, so each case's endpoints stand in a snapshot too. A request that is not there at all is one without anything
in it; where llm-d refuses that, ours refuses to make such a request.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

import inferencesched as isched
from inferencesched._dependencies import plugins_of
from inferencesched.config.catalogue import CATALOGUE
from inferencesched.config.decode import references
from inferencesched.config.spec import PluginSpec
from inferencesched.framework import Reader, StagedHandler
from inferencesched.handlers.addresses import join_address, split_address
from inferencesched.handlers.stages import stage_label
from tests.parity import plugins
from tests.parity.cases import Case, Mismatch, NotYet, Runner, same
from tests.parity.snapshots import columns_of, cycle, plain, pool_of, request_of
from tests.parity.specs import build_from, parameters_of, settings

SPECS: Mapping[str, PluginSpec] = {spec.name: spec for spec in CATALOGUE}
DECIDERS = [name for name, spec in SPECS.items() if "decider" in spec.kinds]
#: In llm-d, these cannot do without a request.
STRICT = {"disagg-profile-handler", "pd-profile-handler", "data-parallel-profile-handler"}
REFUSALS = (isched.InferenceSchedError, msgspec.ValidationError, msgspec.DecodeError)


class Decider:
    """A decider that answers what the case says."""

    def __init__(self, answer: bool) -> None:
        self.answer = answer

    def decide(self, request: Any, target: Any, cycle: Any) -> bool:
        return self.answer


def built(said: Mapping[str, Any]) -> Any:
    """The plug-in that a case names: from the catalogue, or a stub."""
    if said.get("stub") == "decider":
        return Decider(said["returns"])
    spec = SPECS.get(said.get("type", ""))
    if spec is None:
        return plugins.plugin(dict(said))
    given = {"params": said.get("params") or {}}
    return build_from(spec, given, {name: built({"type": name}) for name in DECIDERS if "decider" not in spec.kinds})


def handler_of(kind: str, params: Mapping[str, Any]) -> Any:
    """The handler, with the deciders that a case has in place of their names."""
    said, there = dict(params), {name: built({"type": name}) for name in DECIDERS}
    if "deciders" in said:
        there |= {f"of {stage}": built(each) for stage, each in said["deciders"].items() if isinstance(each, dict)}
        named = {stage: f"of {stage}" if isinstance(each, dict) else each for stage, each in said["deciders"].items()}
        said["deciders"] = named
    if "decider" in said:
        there["of prefill"] = built(said.pop("decider"))
        said["deciderPluginName"] = "of prefill"
    return build_from(SPECS[kind], {"params": said}, there)


def request(case: Case) -> isched.InferenceRequest:
    """The case's request; without any, an empty one."""
    said = case.get("request") or {}
    media = [*(said.get("modalities") or ()), *(said.get("mm_features") or ())]
    made = request_of(case, sum(map(len, said.get("prompts") or ())))
    return msgspec.structs.replace(made, media=tuple(isched.MediaItem(i) for i, _ in enumerate(media)))


def candidates(endpoints: Iterable[Any]) -> isched.Endpoints:
    """All of them, each name once; what is cached is known only of those that say so, and is counted in whole blocks."""
    known: dict[str, dict[str, Any]] = {}
    for each in endpoints:
        said = {"name": each} if isinstance(each, str) else {**each, "name": plain(each["name"])}
        known.setdefault(said["name"], said)
    listed = list(known.values())
    columns, _ = columns_of(listed)
    cached = np.full(len(listed), np.nan)
    for i, each in enumerate(listed):
        match = each.get("attributes", {}).get("prefix_cache_match")
        if isinstance(match, dict):
            blocks = match.get("cached_block_count")
            cached[i] = (match["match_blocks"] if blocks is None else blocks) * match["block_size_tokens"]
    return pool_of(listed).snapshot().with_columns({**columns, isched.PREFIX_TOKENS: cached})


def target_of(said: Any, endpoints: isched.Endpoints) -> isched.Target:
    name = plain(said if isinstance(said, str) else said["name"])
    slot, generation = endpoints.members.stays[endpoints.members.positions[name]]
    address = name if isinstance(said, str) else join_address(said.get("address") or name, said.get("port", ""))
    return isched.Target(name, slot, generation, 1.0, 0, address)


def results_of(case: Case) -> tuple[dict[str, isched.ProfileResult | None], isched.CycleState]:
    """What the profiles have answered, and the cycle with everybody in it."""
    said = {name: None if each is None else each.get("targets") or [] for name, each in case["results"].items()}
    endpoints = candidates([each for targets in said.values() for each in targets or ()])
    results = {
        name: None if targets is None else isched.ProfileResult(tuple(target_of(each, endpoints) for each in targets))
        for name, targets in said.items()
    }
    return results, cycle()._replace(candidates=endpoints)


def refusal(words: str | None, call: Callable[[], object]) -> None:
    """Raise `Mismatch` unless the library refuses, naming what llm-d's words name: what is in quotes, numbers, parameters."""
    try:
        got = call()
    except REFUSALS as error:
        if words and words not in str(error):
            quoted = [one or other for one, other in re.findall(r'"([^"]+)"|\'([^\']+)\'', words)]
            for each in (*quoted, *re.findall(r"\b\d+\b|\b[a-z]+(?:[A-Z][a-z0-9]*)+\b", words)):
                if each not in str(error) and re.sub(r"(?=[A-Z])", "_", each).lower() not in str(error):
                    raise Mismatch(f"an error that names {each!r} (llm-d: {words!r})", str(error)) from error
        return
    raise Mismatch("a refusal", got)


# --- handlers ----------------------------------------------------------------------------------------------------


def pick(case: Case) -> None:
    it, expect = handler_of(case["component"], case["params"]), case["expect"]
    results, state = results_of(case)
    profiles = {name: isched.default_profile() for name in case["profiles"]}
    chosen = it.pick(request(case), profiles, results, state)
    same(sorted(expect["profiles"]), sorted(chosen), "profiles")
    if "peer_endpoint" in expect:
        peer = it.peer(chosen, results) if isinstance(it, StagedHandler) else None
        wanted = expect["peer_endpoint"]
        same(None if wanted is None else plain(wanted), None if peer is None else peer.endpoint, "peer")


def process(case: Case) -> None:
    it, expect = handler_of(case["component"], case["params"]), case["expect"]
    results, state = results_of(case)

    def answer() -> isched.SchedulingResult:
        if case.get("request_null") and case["component"] in STRICT:
            isched.InferenceRequest(request_id="")
        return it.process_results(request(case), results, state)

    if expect.get("error"):
        refusal(expect.get("error_contains"), answer)
        return
    result = answer()
    if "primary" in expect:
        same(expect["primary"], result.primary, "primary")
    present = {name for name, picked in result.profiles.items() if picked is not None}
    for name in expect.get("present", ()):
        same(True, name in present, f"{name} is present")
    for name in expect.get("absent", ()):
        same(False, name in present, f"{name} is present")
    for name in expect.get("empty", ()):
        same((), result.profiles[name].targets, f"targets of {name}")
    for name, ports in expect.get("target_ports", {}).items():
        same(
            ports, [split_address(target.address).port for target in result.profiles[name].targets], f"ports of {name}"
        )
    headers_are(expect, case, result.headers)


def pre_request(case: Case) -> None:
    it = handler_of(case["component"], case["params"])
    results, _ = results_of(case)
    if isinstance(it, isched.DisaggProfileHandler):
        said = isched.stage_headers(results, it.profiles.prefill, it.profiles.encode)
    else:
        said = it.headers(isched.SchedulingResult(request(case), case.get("primary", "decode"), results))
    headers_are(case["expect"], case, said)


def headers_are(expect: Mapping[str, Any], case: Case, said: Mapping[str, str]) -> None:
    """Compare the headers of the request to the server; nothing is as good as empty."""
    sent = isched.sent_headers(request(case).headers, said)
    for name, value in (expect.get("request_headers") or {}).items():
        same(value or None, sent.get(name) or None, name)


def label(case: Case) -> None:
    params = case["params"]
    if params["function"] != "disagg_decision_type":
        raise NotYet(params["function"])
    same(case["expect"]["value"], stage_label(prefill=params["prefill_used"], encode=params["encode_used"]))


def validation(case: Case) -> None:
    spec, expect = SPECS[case["component"]], case["expect"]
    known = {name: built({"type": name}) for name in (case.get("context") or {}).get("known_deciders", DECIDERS)}

    def made() -> Any:
        for reference in references(parameters_of(spec, case), "$"):  # as a configuration does, before it builds
            if reference.name not in known:
                raise isched.InvalidInputError(reference.path, reference.name, f"one of {sorted(known)}")
        return build_from(spec, case, known)

    if not expect["valid"]:
        refusal(expect.get("error_contains"), made)
        return
    try:
        it = made()
    except REFUSALS as error:
        raise Mismatch("parameters that are valid", str(error)) from error
    assert spec.read is not None
    got = settings(spec.read(it))
    for name, value in expect.get("effective", {}).items():
        ours = str(got[name]) if isinstance(value, str) else got[name]
        same(value, ours if not isinstance(ours, msgspec.Struct) else settings(ours), name)


# --- deciders ----------------------------------------------------------------------------------------------------


def decider(case: Case) -> None:
    it = built({"type": case["component"], "params": case["params"]})
    endpoints = candidates(case["endpoints"])
    target = target_of(case["endpoints"][0], endpoints) if case["endpoints"] else None
    answer = it.decide(request(case), target, cycle()._replace(candidates=endpoints))
    same(case["expect"]["disaggregate"], bool(answer))


# --- a profile, a scheduler --------------------------------------------------------------------------------------


class Watched:
    """A plug-in, and what it was asked and has answered."""

    def __init__(self, said: Mapping[str, Any], log: list["Watched"]) -> None:
        self.name = said.get("name", said.get("type", ""))
        self.weight = float(said.get("weight", 1.0))
        self.it, self.log = built(said), log
        self.asked: list[tuple[str, ...]] = []
        self.heard: list[Any] = []

    def filter(self, request: Any, endpoints: isched.Endpoints, cycle: Any) -> Any:
        return self.note(endpoints, self.it.filter(request, endpoints, cycle))

    def score(self, request: Any, endpoints: isched.Endpoints, cycle: Any) -> Any:
        return self.note(endpoints, self.it.score(request, endpoints, cycle))

    def pick(self, totals: Any, endpoints: isched.Endpoints, cycle: Any) -> Any:
        self.note(endpoints, totals)
        return self.it.pick(totals, endpoints, cycle)

    def note(self, endpoints: isched.Endpoints, answer: Any) -> Any:
        self.log.append(self)
        self.asked.append(endpoints.names)
        self.heard.append(answer)
        return answer


def profile(case: Case) -> None:
    params, expect = case["params"], case["expect"]
    log: list[Watched] = []
    filters = [Watched(said, log) for said in params.get("filters") or ()]
    scorers = [Watched(said, log) for said in params.get("scorers") or ()]
    picker = Watched(params["picker"], log)
    weighted = tuple(isched.WeightedScorer(each, each.weight) for each in scorers)
    chosen = isched.SchedulingProfile(picker, weighted, tuple(filters))
    scheduler = isched.Scheduler(chosen, producers=named(each.it for each in (*filters, *scorers, picker)))
    endpoints = candidates(case["endpoints"])

    def answer() -> isched.SchedulingResult:
        return scheduler.schedule(request(case), endpoints, now=0.0, rng=np.random.default_rng(0))

    if expect.get("error"):
        refusal(expect.get("error_contains"), answer)
    else:
        targets = {target.endpoint: target.score for target in answer().profiles["default"].targets}
        totals = dict(zip(picker.asked[-1], picker.heard[-1].tolist(), strict=True))
        if "targets" in expect:
            same([plain(name) for name in expect["targets"]], list(targets), "targets")
        for name, score in expect.get("target_scores", {}).items():
            same(float(score), targets.get(plain(name)), name, tolerance=case["tolerance"])
        if "num_scored" in expect:
            same(expect["num_scored"], len(totals), "candidates that were scored")
        scored = expect.get("scored_candidates", {})
        if scored:
            same({plain(name) for name in scored}, set(totals), "candidates that were scored")
        for name, score in scored.items() if isinstance(scored, dict) else ():
            same(float(score), totals[plain(name)], name, tolerance=case["tolerance"])
    for kind, asked in (("filter", filters), ("scorer", scorers), ("picker", [picker])):
        if kind in expect.get("call_counts", {}):
            same({expect["call_counts"][kind]}, {len(each.asked) for each in asked} or {0}, f"calls of a {kind}")
    if "filter_order" in expect:
        same(expect["filter_order"], [each.name for each in log if each in filters], "filters in order")
    for name, size in expect.get("filter_input_sizes", {}).items():
        same([size], [len(each.asked[-1]) for each in filters if each.name == name], f"candidates of {name}")
    for name, wanted in expect.get("scorer_aggregates", {}).items():
        [each] = [each for each in scorers if each.name == name]
        scores = each.heard[-1]
        got = {"max": scores.max(), "min": scores.min(), "avg": scores.mean(), "endpoints_scored": len(scores)}
        for what, value in wanted.items():
            same(
                float(value),
                float({**got, "weight": each.weight}[what]),
                f"{name}: {what}",
                tolerance=case["tolerance"],
            )


class Named:
    """What a case says of the endpoints, under the name of the producer that a plug-in asks for."""

    def __init__(self, signals: Iterable[isched.Signal]) -> None:
        self.produces = tuple(signals)

    def produce(self, request: Any, endpoints: isched.Endpoints, cycle: Any) -> isched.Produced[None]:
        plains = {each.name: each for each in endpoints.layout.signals}
        return isched.Produced({each: endpoints[plains[each.name.partition("@")[0]]] for each in self.produces}, None)

    def commit(self, receipt: None, slot: int, *, now: float) -> None:
        """Learn nothing."""


def named(readers: Iterable[object]) -> list[Named]:
    """The producer of what somebody asks of a producer by its name."""
    signals = {read.signal for reader in readers if isinstance(reader, Reader) for read in reader.reads}
    asked = [each for each in signals if "@" in each.name]
    return [Named(asked)] if asked else []


def scheduler(case: Case) -> None:
    params, expect = case["params"], case["expect"]
    said = params["profile_handler"]
    profiles = {
        name: isched.SchedulingProfile(
            built(each["picker"]),
            tuple(isched.WeightedScorer(built(one), float(one.get("weight", 1.0))) for one in each["scorers"]),
            tuple(built(one) for one in each["filters"]),
        )
        for name, each in params["profiles"].items()
    }
    handler = handler_of(said["type"], said.get("params") or {})
    readers = [handler, *(plugin for each in profiles.values() for plugin in plugins_of(each))]
    it = isched.Scheduler(profiles, handler=handler, producers=named(readers))
    endpoints = candidates(case["endpoints"])

    def answer() -> isched.SchedulingResult:
        return it.schedule(request(case), endpoints, now=0.0, rng=np.random.default_rng(0))

    if expect.get("error"):
        refused = plugins.refused(answer)
        if expect.get("error_code") == "ResourceExhausted":
            same(429, refused.status, "status")
        _ = expect.get("error_headers")  # headers are the gateway's: an error has an outcome for a label, and a status
        refusal(expect.get("error_contains"), answer)
        return
    result = answer()
    if "primary" in expect:
        same(expect["primary"], result.primary, "primary")
    if expect.get("exact_profiles"):
        same(set(expect["profiles"]), set(result.profiles), "profiles")
    for name, expected in expect["profiles"].items():
        picked = result.profiles.get(name)
        targets = {target.endpoint: target.score for target in picked.targets} if picked else {}
        if "targets" in expected:
            same([plain(each) for each in expected["targets"]], list(targets), name)
        for each, score in expected.get("target_scores", {}).items():
            same(float(score), targets.get(plain(each)), each, tolerance=case["tolerance"])


class Several:
    """A plug-in of these kinds."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.kinds, self.weight = said["interfaces"], said.get("weight")

    def filter(self, request: Any, endpoints: Any, cycle: Any) -> Any:
        raise NotImplementedError

    def pick(self, totals: Any, endpoints: Any, cycle: Any) -> Any:
        raise NotImplementedError


def assembled(case: Case) -> None:
    """A profile of plug-ins that are several things at once: each has its place, or the profile refuses it."""
    expect = case["expect"]
    given = [Several(said) for said in case["params"]["plugins"]]
    pickers: list[Any] = [each for each in given if "picker" in each.kinds]
    scorers: list[Any] = [
        each if each.weight is None else isched.WeightedScorer(each, float(each.weight))
        for each in given
        if "scorer" in each.kinds
    ]
    filters = tuple(each for each in given if "filter" in each.kinds)

    def made() -> isched.SchedulingProfile:
        picker: Any = isched.MaxScorePicker() if not pickers else pickers[0] if len(pickers) == 1 else tuple(pickers)
        return isched.SchedulingProfile(picker, tuple(scorers), filters)

    if not expect["valid"]:
        refusal(expect.get("error_contains"), made)
        return
    it = made()
    got = {"filters": len(it.filters), "scorers": len(it.scorers), "has_picker": it.picker in pickers}
    for name, value in expect.get("effective", {}).items():
        same(value, got[name], name)


HANDLERS = [name for name, spec in SPECS.items() if "profile-handler" in spec.kinds and spec.origin == "llm-d"]
STAGES = ["disagg-profile-handler", "pd-profile-handler", "disagg-headers-handler", "prefill-header-handler"]

RUNNERS: dict[tuple[str, str], Runner] = {
    **{(name, "profile-handler-pick"): pick for name in HANDLERS},
    **{(name, "profile-handler-process"): process for name in HANDLERS},
    **{(name, "pre-request"): pre_request for name in STAGES},
    **{(name, "function"): label for name in STAGES},
    **{(name, "decider"): decider for name in DECIDERS},
    **{(name, "param-validation"): validation for name in (*HANDLERS, *STAGES, *DECIDERS)},
    ("scheduler-profile", "profile"): profile,
    ("scheduler-profile", "function"): plugins.score_range,
    ("scheduler-profile", "param-validation"): assembled,
    ("scheduler", "scheduler"): scheduler,
}
