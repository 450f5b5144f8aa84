"""Load, LoRA, prefixes and predicted latency: scorers, filters, producers, and what a request counts for while it is in flight."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import inferencesched as isched
from inferencesched import signals
from inferencesched.framework import PartialScorer, Reader
from inferencesched.prefix.multimodal import media_hit
from inferencesched.producers.inflight import InflightReceipt
from tests.parity.affinity import SPECS, kept_as_expected, scored_as_expected, world
from tests.parity.cases import Case, Runner, same, unknown, within
from tests.parity.snapshots import SECONDS, columns_of, cycle, plain, pool_of
from tests.parity.specs import build_from, param_validation, settings

SCORERS = (
    "queue-scorer",
    "running-requests-size-scorer",
    "kv-cache-utilization-scorer",
    "load-aware-scorer",
    "active-request-scorer",
    "token-load-scorer",
    "lora-affinity-scorer",
    "prefix-cache-scorer",
    "latency-scorer",
)
FILTERS = ("slo-headroom-tier-filter", "prefix-cache-affinity-filter")
OTHERS = ("max-score-picker", "random-picker", "weighted-random-picker", "predicted-latency-producer")
PARAMETERS = (*SCORERS, *FILTERS, *OTHERS, "inflight-load-producer", "precise-prefix-cache-scorer")


class Chance:
    """A generator that always draws what the case says."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


def surroundings(case: Case, plugin: object) -> tuple[isched.InferenceRequest, isched.Endpoints, isched.CycleState]:
    """The request, the candidates, also under the names of the producers that the plug-in asks for, and its chance."""
    request, endpoints, state = world(case, plugin)
    plains = {signal.name: signal for signal in endpoints.layout.signals}
    named = [read.signal for read in (plugin.reads if isinstance(plugin, Reader) else ()) if "@" in read.signal.name]
    endpoints = endpoints.with_columns({each: endpoints[plains[each.name.partition("@")[0]]] for each in named})
    if "_rand" in case["params"]:
        state = state._replace(rng=Chance(case["params"]["_rand"]))  # type: ignore[arg-type]
    return request, endpoints, state


# --- scorers and filters -----------------------------------------------------------------------------------------


def scorer(case: Case) -> None:
    plugin = build_from(SPECS[case["component"]], case)
    request, endpoints, state = surroundings(case, plugin)
    names = [plain(name) for name in endpoints.names]
    scores = dict(zip(names, plugin.score(request, endpoints, state).tolist(), strict=True))
    silent: set[str] = set()
    if isinstance(plugin, PartialScorer):
        told = plugin.scored(request, endpoints, state)
        silent = {name for name, has in zip(names, told, strict=True) if not has}
    expect = case["expect"]
    if case["component"] == "latency-scorer" and "scores" in expect:
        # llm-d's scorer goes to 1.01, and its profile clamps every score to 1: ours is clamped to begin with
        clamped = {name: min(1.0, value) for name, value in expect["scores"].items()}
        scored_as_expected({"scores": clamped}, scores, silent, case["tolerance"])
        expect = {name: value for name, value in expect.items() if name != "scores"}
    scored_as_expected(expect, scores, silent, case["tolerance"])


def filter_(case: Case) -> None:
    plugin = build_from(SPECS[case["component"]], case)
    request, endpoints, state = surroundings(case, plugin)
    columns = {signal for signal in endpoints.layout.signals if signal.name.partition("@")[0] in MILLISECONDS}
    endpoints = endpoints.with_columns({signal: endpoints[signal] / 1e3 for signal in columns})
    keep = plugin.filter(request, endpoints, state)
    names = [plain(name) for name in endpoints.names]
    kept_as_expected(case["expect"], names, [name for name, kept in zip(names, keep, strict=True) if kept])


#: The columns of latency: seconds here, milliseconds there.
MILLISECONDS = {signal.name for signal in SECONDS}


def parameters(case: Case) -> None:
    param_validation(SPECS[case["component"]], case, effective)


def effective(built: Any) -> Mapping[str, Any]:
    """Return the settings of what was built under their YAML names, by whichever spec makes its like."""
    [spec] = [each for each in SPECS.values() if each.made is type(built)]
    assert spec.read is not None
    return settings(spec.read(built))


def any_media_hit(case: Case) -> None:
    if case["params"]["function"] != "any_mm_hit":
        raise unknown("function", case["params"]["function"])
    blocks = np.full(len(case["endpoints"]), np.nan)
    for i, endpoint in enumerate(case["endpoints"]):
        match = endpoint.get("attributes", {}).get("prefix_cache_match")
        if isinstance(match, dict) and match.get("mm") is not None:
            blocks[i] = match["mm"].get("match_blocks", 0)
    within(case["expect"]["value"], media_hit(blocks)._asdict())


# --- what is in flight -------------------------------------------------------------------------------------------


def estimate(case: Case) -> None:
    params, value = case["params"], case["expect"]["value"]
    tokens, client = params.get("input_tokens") or 0, params.get("client_max_tokens")
    if params["function"] == "estimate_output":
        ratio, most = params["outputRatio"], params.get("maxEstimatedOutputTokens")
        same(value, isched.estimated_output_tokens(tokens, ratio, client_cap=client, operator_cap=most))
    elif params["function"] == "estimate_total":
        it = isched.LoadEstimate(True, params["outputRatio"], params.get("maxEstimatedOutputTokens"))
        same(value, it.tokens(max(0, tokens), input_tokens=tokens, client_cap=client))
    elif params["function"] in ("uncached_tokens", "estimate_uncached"):
        names = ("match_blocks", "total_blocks", "block_size_tokens")
        same(value, isched.uncached_tokens(tokens, *(params.get(name) or 0 for name in names)))
    else:
        raise unknown("function", params["function"])


class Ledger:
    """A pool whose bookings follow llm-d's rules: each profile's first target, until the estimate says that it is done."""

    def __init__(self, case: Case) -> None:
        self.producer = build_from(SPECS["inflight-load-producer"], case)
        self.rules: isched.LoadEstimate = self.producer.estimate
        self.said = {endpoint["name"]: endpoint for endpoint in case["endpoints"]}
        self.pool = isched.InferencePool()
        self.generations: dict[str, Any] = {}
        self.sent: dict[str, list[tuple[str, isched.Reservation]]] = {}
        self.first: set[str] = set()
        for name in self.said:
            self.pool.join(name)

    def endpoint_event(self, step: Mapping[str, Any]) -> None:
        name, generation = plain(step["endpoint"]), step.get("generation")
        known = self.generations.get(name)
        if step["event"] == "add":
            if name in self.pool.names and known not in (None, generation):
                self.pool.leave(name)
            if name not in self.pool.names:
                self.pool.join(name)
            self.generations[name] = generation
        elif step["event"] == "delete":
            if name in self.pool.names and known in (None, generation):
                self.pool.leave(name)
                self.generations.pop(name, None)
        else:
            raise unknown("event", step["event"])

    def tokens(self, said: Mapping[str, Any], name: str, attributes: Mapping[str, Any] | None = None) -> int:
        """Return what a request counts for on an endpoint."""
        tokens = said.get("token_count") or 0
        known = (self.said.get(name) or {}).get("attributes") if attributes is None else attributes
        match = (known or {}).get("prefix_cache_match")
        blocks = (0, 0, 0)
        if isinstance(match, dict):
            blocks = (match["match_blocks"], match["total_blocks"], match["block_size_tokens"])
        client = next((said[key] for key in CAPS if said.get(key) is not None), None)
        return self.rules.tokens(isched.uncached_tokens(tokens, *blocks), input_tokens=tokens, client_cap=client)

    def pre_request(self, step: Mapping[str, Any]) -> None:
        said, result = step["request"], step["result"] or {}
        for profile, picked in (result.get("profiles") or {}).items():
            for target in ((picked or {}).get("targets") or [])[:1]:
                whole = isinstance(target, Mapping)
                name = plain(target["name"] if whole else target)
                if name not in self.pool.names:
                    self.pool.join(name)
                tokens = self.tokens(said, name, target.get("attributes") if whole else None)
                booked = self.pool.reserve(name, request_id=said["request_id"], tokens=tokens, now=0.0)
                self.sent.setdefault(said["request_id"], []).append((profile, booked))

    def response_body(self, step: Mapping[str, Any]) -> None:
        request = step["request"]["request_id"]
        if step.get("end_of_stream"):
            for _, booked in self.sent.pop(request, ()):
                if booked.settlement is None:
                    booked.complete(now=0.0)
            self.first.discard(request)
        elif step.get("start_of_stream") and request not in self.first:
            self.first.add(request)
            for profile, booked in self.sent.get(request, ()):
                ends = self.rules.at_first_token(profile)
                if booked.settlement is None and ends == "settle":
                    booked.complete(now=0.0)
                elif booked.settlement is None and ends == "tokens":
                    booked.first_token(now=0.0)

    def load(self, name: str) -> dict[str, int]:
        if plain(name) not in self.pool.names:
            return {"requests": 0, "tokens": 0}
        endpoints, place = self.pool.snapshot(), self.pool.names.index(plain(name))
        return {
            "requests": int(endpoints[isched.INFLIGHT_REQUESTS][place]),
            "tokens": int(endpoints[isched.INFLIGHT_TOKENS][place]),
        }

    def produce(self, said: Mapping[str, Any]) -> dict[str, int]:
        """Return what the producer says of each endpoint; whole blocks count, as they do in llm-d."""
        endpoints = pool_of(list(self.said.values())).snapshot()
        columns, _ = columns_of(list(self.said.values()))
        tokens = said.get("token_count") or 0
        output = self.rules.output(tokens, next((said[key] for key in CAPS if said.get(key) is not None), None))
        uncached = np.array([float(self.tokens(said, name) - output) for name in endpoints.names])
        columns[isched.PREFIX_TOKENS] = np.maximum(0.0, tokens - uncached)
        request = isched.InferenceRequest(request_id=said.get("request_id") or "r", input_tokens=tokens)
        produced = self.producer.produce(request, endpoints.with_columns(columns), cycle())
        same(InflightReceipt(request.request_id, self.rules.output(tokens)), produced.receipt, "receipt")
        return dict(zip(endpoints.names, produced.columns[signals.UNCACHED_TOKENS].tolist(), strict=True))


#: Where a request may say how long its answer may be.
CAPS = ("max_output_tokens", "max_completion_tokens", "max_tokens", "client_max_tokens")


def inflight(case: Case) -> None:
    it = Ledger(case)
    for number, step in enumerate(case["steps"]):
        operation, expect = step["op"], step.get("expect", {})
        where = f"step {number}, {operation}"
        if operation == "endpoint_event":
            it.endpoint_event(step)
        elif operation == "pre_request":
            it.pre_request(step)
        elif operation == "response_body":
            it.response_body(step)
        elif operation == "load":
            within(expect, it.load(step["endpoint"]), where)
        elif operation == "produce":
            got = it.produce(step["request"])
            for name, value in expect.get("uncached_request_tokens", {}).items():
                same(float(value), got[plain(name)], f"{where}: {name}")
            for name, value in (expect.get("in_flight_load") or {}).items():
                within(value, it.load(name), f"{where}: {name}")
        else:
            raise unknown("operation", operation)


# --- predictions -------------------------------------------------------------------------------------------------


def prediction(case: Case) -> None:
    params = case["params"]
    if params["function"] != "validate_prediction":
        raise unknown("function", params["function"])
    known = {name: params[name] for name in ("streamingMode", "sloBufferFactor") if name in params}
    producer = build_from(SPECS["predicted-latency-producer"], {**case, "params": known})
    predicted = isched.LatencyPrediction(
        np.array([float(params["predicted_ttft"])]), np.array([float(params["predicted_tpot"])])
    )
    room = isched.headrooms(
        predicted,
        isched.Objectives(params.get("ttft_slo"), params.get("tpot_slo")),
        streaming=producer.streaming,
        buffer=producer.slo_buffer_factor,
        least_tpot=params.get("pod_min_tpot_slo") or np.nan,
    )
    ttft, tpot = float(room.ttft[0]), float(room.tpot[0])
    fits = tpot > 0 if producer.streaming else True
    got = {
        "ttft_valid": ttft > 0,
        "tpot_valid": fits,
        "valid": ttft > 0 and fits,
        "ttft_headroom_positive": ttft > 0,
        "tpot_headroom_positive": tpot > 0,
        "ttft_headroom": ttft,
        "tpot_headroom": tpot,
        "headroom": tpot,
    }
    within(case["expect"], got, tolerance=case["tolerance"])


RUNNERS: dict[tuple[str, str], Runner] = {
    **dict.fromkeys(((name, "scorer") for name in SCORERS), scorer),
    **dict.fromkeys(((name, "filter") for name in FILTERS), filter_),
    **dict.fromkeys(((name, "param-validation") for name in PARAMETERS), parameters),
    ("precise-prefix-cache-scorer", "function"): any_media_hit,
    ("inflight-load-producer", "function"): estimate,
    ("inflight-load-producer", "sequence"): inflight,
    ("predicted-latency-producer", "function"): prediction,
}
