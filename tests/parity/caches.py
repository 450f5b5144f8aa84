"""Who had what before: cold prompts, pictures, clusters, sources of blocks, bursts.

Plug-ins are made by their specs, from a case's parameters as they stand. What an endpoint lacks is unknown in its columns. What llm-d's
no-hit-lru-scorer remembers, a producer does here: the two run together, as a configuration makes them. An endpoint without
metadata cannot be in a pool, and is left out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xxhash

import inferencesched as isched
from inferencesched import signals
from inferencesched.config.catalogue import CATALOGUE
from inferencesched.framework import PartialScorer, Reader
from inferencesched.producers.multimodal import entries_of, unique_items
from inferencesched.producers.p2p import SOURCE_HEADER, Source, SourceReceipt
from tests.parity.cases import Case, Mismatch, Runner, same, unknown
from tests.parity.snapshots import cycle, plain, pool_of, request_of
from tests.parity.specs import build_from, param_validation

SPECS = {spec.name: spec for spec in CATALOGUE}
SCORERS = (
    "no-hit-lru-scorer",
    "mm-embeddings-cache-scorer",
    "multicluster-queue-scorer",
    "multicluster-kv-cache-utilization-scorer",
    "multicluster-prefix-cache-scorer",
)
PRODUCERS = (
    "mm-embeddings-cache-producer",
    "p2p-source-producer",
    "burst-prefix-cache-producer",
    "multicluster-approx-prefix-cache-producer",
)


# --- columns -----------------------------------------------------------------------------------------------------


def facts(endpoint: Mapping[str, Any]) -> dict[str, float]:
    """What is known of an endpoint, by the name of the signal."""
    known, found = endpoint.get("attributes") or {}, {}
    match = known.get("prefix_cache_match")
    if isinstance(match, dict):
        cached = match.get("cached_block_count", match["match_blocks"])
        if match["total_blocks"]:  # a case may match more blocks than a prompt has
            found["prefix_match"] = min(1.0, match["match_blocks"] / match["total_blocks"])
        found |= {"prefix_tokens": cached * match["block_size_tokens"], "cached_blocks": cached}
        tiers = match.get("cached_blocks_by_tier")
        if tiers is not None:
            found["readable_blocks"] = tiers.get("cpu", 0)
    for name, key in (
        ("multicluster_queue_size", "multicluster_queue_size"),
        ("multicluster_kv_cache_usage", "multicluster_kv_cache_utilization"),
    ):
        if known.get(key) is not None:
            found[name] = known[key]
    encoder = known.get("encoder_cache_match")
    if isinstance(encoder, dict):
        whole = sum(item["size"] for item in encoder.get("request") or ())
        if whole > 0:
            found["encoder_match"] = sum(item["size"] for item in encoder.get("matched") or ()) / whole
    return found


def snapshot_of(endpoints: list[dict[str, Any]], *plugins: Any) -> isched.Endpoints:
    """The endpoints, with every column that these plug-ins read beside the pool's own."""
    here = [endpoint for endpoint in endpoints if not endpoint.get("metadata_null")]
    snapshot = pool_of(here).snapshot()
    return filled(snapshot, here, plugins)


def filled(snapshot: isched.Endpoints, endpoints: list[dict[str, Any]], plugins: Iterable[Any]) -> isched.Endpoints:
    said = {endpoint["name"]: facts(endpoint) for endpoint in endpoints}
    columns = {}
    for plugin in plugins:
        for signal, _, _ in plugin.reads if isinstance(plugin, Reader) else ():
            base = signal.name.partition("@")[0]
            if any(base in each for each in said.values()) or signal.name not in snapshot.layout.rows:
                columns[signal] = np.array([said[name].get(base, np.nan) for name in snapshot.names])
    return snapshot.with_columns(columns)


# --- scorers -----------------------------------------------------------------------------------------------------


class Scoring:
    """A scorer of a case, with the producer that remembers for it, and its pool."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.scorer = build_from(SPECS[case["component"]], case)
        self.given = {endpoint["name"]: endpoint for endpoint in case["endpoints"]}
        self.pool = pool_of(case["endpoints"])
        self.memory: isched.NoHitLruProducer | None = None
        if case["component"] == "no-hit-lru-scorer":
            given = {key: value for key, value in case["params"].items() if key != "coldRankProducerName"}
            self.memory = build_from(SPECS["no-hit-lru-producer"], {"params": given})
        self.receipts: dict[str, Any] = {}

    def score(self, said: Mapping[str, Any]) -> tuple[isched.Endpoints, dict[str, float], dict[str, bool]]:
        """Score what a step or a whole case asks for; return the scores and who has one, by name."""
        attributes = said.get("endpoint_attributes") or {}
        here = [
            {**each, "attributes": attributes.get(name, each.get("attributes") or {})}
            for name, each in self.given.items()
        ]
        wanted = [plain(name) for name in said.get("candidates") or self.given]
        endpoints = self.pool.snapshot()
        if len(endpoints):
            endpoints = endpoints.where(np.array([name in wanted for name in endpoints.names], dtype=np.bool_))
        endpoints = filled(endpoints, here, (self.scorer,) if self.memory is None else (self.scorer, self.memory))
        request = request_of(said)
        if self.memory is not None:
            produced = self.memory.produce(request, endpoints, cycle())
            self.receipts[request.request_id] = produced.receipt
            endpoints = endpoints.with_columns(produced.columns)
        scores = self.scorer.score(request, endpoints, cycle())
        told = np.ones(len(endpoints), dtype=np.bool_)
        if isinstance(self.scorer, PartialScorer):
            told = self.scorer.scored(request, endpoints, cycle())
        names = endpoints.names
        return (
            endpoints,
            dict(zip(names, scores.tolist(), strict=True)),
            dict(zip(names, told.tolist(), strict=True)),
        )

    def pre_request(self, step: Mapping[str, Any]) -> None:
        """Tell the producer of the primary's target, and of the one that computes the prompt."""
        receipt = self.receipts.get(step["request"].get("request_id") or "vector")
        if receipt is None or self.memory is None:
            return
        for slot in told_slots(step["result"], self.pool.snapshot()):
            self.memory.commit(receipt, slot, now=0.0)
            self.memory.check()


def told_slots(result: Mapping[str, Any], endpoints: isched.Endpoints) -> list[int]:
    """Return the slots that a scheduler would tell producers of: the primary's first target, and prefill's."""
    slots: dict[int, None] = {}
    for profile in dict.fromkeys((result["primary"], "prefill")):
        for target in ((result["profiles"].get(profile) or {}).get("targets") or [])[:1]:
            name = plain(target if isinstance(target, str) else target["name"])
            slots[int(endpoints.slots[endpoints.names.index(name)])] = None
    return list(slots)


def held_to(expect: Any, scores: dict[str, float], told: dict[str, bool], tolerance: float) -> None:
    for name, expected in (expect.get("scores") or {}).items():
        same(True, told[plain(name)], f"{name} has a score")
        same(expected, scores[plain(name)], name, tolerance=tolerance)
    for name in expect.get("unscored") or ():
        same(False, told[plain(name)], f"{name} has a score")
        same(0.0, scores[plain(name)], name)
    if "num_scores" in expect:
        same(expect["num_scores"], sum(told.values()), "scores")
    for one, sign, other in expect.get("relations", ()):
        left, right = (scores[plain(each)] if isinstance(each, str) else each for each in (one, other))
        holds = {
            ">": left > right,
            "<": left < right,
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "!=": left != right,
        }
        if not holds[sign]:
            raise Mismatch(f"{one} {sign} {other}", (left, right))
    if "highest" in expect:
        same(plain(expect["highest"]), max(scores, key=lambda name: scores[name]), "highest")


def scorer(case: Case) -> None:
    _, scores, told = Scoring(case).score({"request": case.get("request") or {}})
    held_to(case["expect"], scores, told, case["tolerance"])


def scorer_sequence(case: Case) -> None:
    it = Scoring(case)
    for step in case["steps"]:
        if step["op"] == "score":
            _, scores, told = it.score(step)
            held_to(step.get("expect", {}), scores, told, case["tolerance"])
        elif step["op"] == "pre_request":
            it.pre_request(step)
        else:
            raise unknown("operation", step["op"])


# --- encoder caches ----------------------------------------------------------------------------------------------


def item(hash_: str) -> isched.MediaItem:
    return isched.MediaItem(xxhash.xxh3_64_intdigest(hash_.encode()))


def media_of(said: Mapping[str, Any]) -> tuple[isched.MediaItem, ...]:
    """The request's items: by hash alone, or as features of its prompts."""
    hashes = list(said.get("mm_hashes") or ())
    hashes += [feature["hash"] for feature in said.get("mm_features") or said.get("features") or ()]
    return tuple(item(each) for each in hashes if each)


class Encoders:
    """The producer and its pool."""

    def __init__(self, case: Case) -> None:
        self.producer: isched.EncoderCacheProducer = build_from(SPECS[case["component"]], case)
        self.pool = pool_of(case["endpoints"])
        self.receipts: dict[str, Any] = {}
        self.sizes: dict[str, int] = {}

    def produce(self, said: Mapping[str, Any]) -> dict[str, float]:
        request = isched.InferenceRequest(request_id=said.get("request_id") or "vector", media=media_of(said))
        endpoints = self.pool.snapshot()
        columns, receipt, _ = self.producer.produce(request, endpoints, cycle())
        self.receipts[request.request_id] = receipt
        self.sizes = dict.fromkeys(endpoints.names, len(unique_items(request.media)))
        return dict(zip(endpoints.names, columns[signals.ENCODER_MATCH].tolist(), strict=True))

    def commit(self, request_id: str, slots: Iterable[int]) -> None:
        receipt = self.receipts.get(request_id)
        for slot in slots if receipt is not None else ():
            self.producer.commit(receipt, slot, now=0.0)
            self.producer.check()

    def holders(self, hash_: str) -> tuple[str, ...]:
        return self.producer.holds(item(hash_).hash, self.pool.snapshot())


def published(expect: Any, match: Mapping[str, float], count: int) -> None:
    """Hold the shares against the items that a case has published."""
    for name, wanted in (expect.get("match") or {}).items():
        share = match[plain(name)]
        if wanted is None:
            same(True, bool(np.isnan(share)), name)
            continue
        matched = wanted.get("matched", wanted.get("matched_items", wanted if isinstance(wanted, list) else []))
        request = wanted.get("request", wanted.get("request_items")) if isinstance(wanted, dict) else None
        whole = count if request is None else len(request)
        same(whole, count, f"{name}: items of the request")
        same(len(matched) / whole if whole else float("nan"), share, name)


def encoders(case: Case) -> None:
    it = Encoders(case)
    if "steps" not in case:
        said = case.get("request") or {}
        published(case["expect"], it.produce(said), len(unique_items(media_of(said))))
        return
    for number, step in enumerate(case["steps"]):
        operation, expect = step["op"], step.get("expect", {})
        if operation == "produce":
            published(expect, it.produce(step["request"]), len(unique_items(media_of(step["request"]))))
        elif operation == "pre_request":
            it.commit(step["request"]["request_id"], told_slots(step["result"], it.pool.snapshot()))
        elif operation == "put_cache":
            it.produce({"request_id": f"put {number}", "mm_hashes": [step["hash"]]})
            endpoints = it.pool.snapshot()
            it.commit(
                f"put {number}", [int(endpoints.slots[endpoints.names.index(plain(pod))]) for pod in step["pods"]]
            )
        elif operation == "endpoint_event":
            name = plain(step["endpoint"] if isinstance(step["endpoint"], str) else step["endpoint"]["name"])
            if step["event"] == "delete":
                it.pool.leave(name)
            elif name not in it.pool.snapshot().names:
                it.pool.join(name)
        elif operation == "cleanup":
            left = {plain(pod) for pod in step.get("pods", step.get("active_pods", ()))}
            for name in set(it.pool.snapshot().names) - left:
                it.pool.leave(name)
        elif operation == "cache":
            found = it.holders(step["hash"])
            if "absent" in expect:
                same(expect["absent"], not found, f"step {number}: nobody holds {step['hash']}")
            for pods, inside in ((expect.get("contains", ()), True), (expect.get("not_contains", ()), False)):
                for pod in pods:
                    same(inside, plain(pod) in found, f"step {number}: {pod}")
        else:
            raise unknown("operation", operation)


def encoder_function(case: Case) -> None:
    params, expect = case["params"], case["expect"]
    name = params["function"]
    if name == "lru_capacity_from_cache_size_mb":
        size = params["cacheSizeInMBPerServer"]
        same(expect["value"], entries_of(size))
        made = build_from(SPECS[case["component"]], {"params": {"cacheSizeInMBPerServer": size}})
        same(expect["value"], made.entries, "as configured")
    elif name == "extract_mm_items":
        items = unique_items(media_of(params))
        if "value" in expect:  # nil there is nothing here
            same(list(expect["value"] or ()), list(items))
        for each in expect.get("value_any_order", ()):
            same(each["size"], items.pop(item(each["hash"]).hash), each["hash"])
        same({}, items, "items that are not expected")
    else:
        raise unknown("function", name)


# --- sources of blocks -------------------------------------------------------------------------------------------


def drawn(policy: isched.P2PSource, endpoints: isched.Endpoints, request_id: str) -> SourceReceipt:
    request = isched.InferenceRequest(request_id=request_id)
    return policy.produce(request, endpoints, cycle()).receipt


def best_match(expect: Any, source: Source | None) -> None:
    if "best_match" not in expect:
        return
    wanted = expect["best_match"]
    if wanted is None or source is None:
        same(wanted, source, "source")
        return
    got = {"host_port": source.address, "cached_tokens": source.tokens, "name": source.endpoint}
    for name, value in wanted.items():
        same(value, got[name], name)


def source(case: Case) -> None:
    policy = build_from(SPECS[case["component"]], case)
    request_id = (case.get("request") or {}).get("request_id") or "vector"
    best_match(case["expect"], drawn(policy, snapshot_of(case["endpoints"], policy), request_id).source)


def source_sampling(case: Case) -> None:
    policy, expect = build_from(SPECS[case["component"]], case), case["expect"]
    endpoints, backwards = (snapshot_of(case["endpoints"][::step], policy) for step in (1, -1))
    counts: Counter[str] = Counter()
    for i in range(case["count"]):
        name = case["request_id_pattern"].replace("{i}", str(i))
        receipt = drawn(policy, endpoints, name)
        assert receipt.source is not None
        counts[receipt.source.endpoint] += 1
        for pod, tokens in (expect.get("cached_tokens_when_chosen") or {}).items():
            if receipt.source.endpoint == plain(pod):
                same(tokens, receipt.source.tokens, pod)
        if expect.get("deterministic_per_request_id"):
            same(receipt.source, drawn(policy, endpoints, name).source, name)
            other = drawn(policy, backwards, name).source
            same(receipt.source.endpoint, other and other.endpoint, f"{name}, endpoints in another order")
    for one, sign, other in expect.get("relations", ()):
        left, right = (counts[plain(each)] if isinstance(each, str) else each for each in (one, other))
        if not {">": left > right, "<": left < right, ">=": left >= right, "<=": left <= right}[sign]:
            raise Mismatch(f"{one} {sign} {other}", (left, right))


def results_of(said: Mapping[str, Any], primary: str, endpoints: isched.Endpoints) -> isched.SchedulingResult:
    """What profiles picked, of these endpoints."""
    profiles: dict[str, isched.ProfileResult | None] = {}
    for name, result in said.items():
        targets = []
        for each in (result or {}).get("targets") or ():
            i = endpoints.names.index(plain(each if isinstance(each, str) else each["name"]))
            slot, generation = endpoints.stay(i)
            targets.append(isched.Target(endpoints.name(i), slot, generation, 1.0, 0, endpoints.address(i)))
        profiles[name] = isched.ProfileResult(tuple(targets)) if targets else None
    return isched.SchedulingResult(isched.InferenceRequest(request_id="vector"), primary, profiles)


def sent(expect: Any, headers: Mapping[str, str]) -> None:
    for name, value in (expect.get("request_headers") or {}).items():
        got = headers.get(name)
        if name == SOURCE_HEADER:
            same(True, got is not None, "the header is set or removed, whatever the client sent")
        same(value or None, got or None, name)


def source_header(case: Case) -> None:
    policy, said = build_from(SPECS[case["component"]], case), case.get("request") or {}
    here = {
        each["name"]: each
        for result in case["results"].values()
        for each in (result or {}).get("targets") or ()
        if isinstance(each, dict)
    }
    best = said.get("best_match")
    addresses = dict(zip(here, pool_of(list(here.values())).snapshot().members.addresses, strict=True))
    if best is not None and best["host_port"] not in addresses.values():
        host, _, port = best["host_port"].rpartition(":")
        here["elsewhere"] = {"name": "elsewhere", "address": host.strip("[]"), "port": port}
        addresses["elsewhere"] = best["host_port"]
    endpoints = snapshot_of(list(here.values()), policy)
    found = None
    if best is not None:
        name = next(name for name, address in addresses.items() if address == best["host_port"])
        slot, _ = endpoints.stay(endpoints.names.index(name))
        found = Source(name, slot, best["host_port"], best["cached_tokens"])
    receipt = drawn(policy, endpoints, "vector")._replace(source=found)
    result = results_of(case["results"], case["primary"], endpoints)._replace(receipts=(receipt,))
    sent(case["expect"], isched.source_headers(result))


def source_sequence(case: Case) -> None:
    policy = build_from(SPECS[case["component"]], case)
    receipts: dict[str, SourceReceipt] = {}
    endpoints = snapshot_of(case["endpoints"], policy)
    for step in case["steps"]:
        name = step["request"]["request_id"]
        if step["op"] == "produce":
            changed = step.get("endpoint_attributes") or {}
            given = step.get("endpoints") or case["endpoints"]
            given = [{**each, "attributes": changed.get(each["name"], each.get("attributes"))} for each in given]
            endpoints = snapshot_of(given, policy)
            receipts[name] = drawn(policy, endpoints, name)
            best_match(step.get("expect", {}), receipts[name].source)
        elif step["op"] == "pre_request":
            result = results_of(step["result"]["profiles"], step["result"]["primary"], endpoints)
            nothing = SourceReceipt(None, np.zeros(len(endpoints)), endpoints, policy)
            receipt = receipts.get(name, nothing)
            sent(step.get("expect", {}), isched.source_headers(result._replace(receipts=(receipt,))))
        else:
            raise unknown("operation", step["op"])


# --- bursts ------------------------------------------------------------------------------------------------------


def burst(case: Case) -> None:
    """A block that a case makes up is a block of one token: prompts share hashes where they share all up to there."""
    producer: isched.BurstPrefixProducer = build_from(SPECS[case["component"]], case)
    endpoints, expect = pool_of(case["endpoints"]).snapshot(), case["expect"]
    requests, groups = [], []
    for group in case["groups"]:
        hashes = isched.block_hashes(np.array(group.get("prefix") or (), dtype=np.uint32), 1)
        for i in range(group.get("size", 1)):
            requests.append(isched.InferenceRequest(request_id=f"{group['id']}/{i}", block_hashes=hashes))
            groups.append(group["id"])
    producer.plan(requests, endpoints)
    producer.check()
    places: dict[str, list[str | None]] = {group: [] for group in groups}
    counts: Counter[str] = Counter()
    for request, group in zip(requests, groups, strict=True):
        match = producer.produce(request, endpoints, cycle()).columns[isched.PREFIX_MATCH]
        name = endpoints.name(int(match.argmax())) if match.any() else None
        places[group].append(name)
        counts.update([name] if name else [])
    for group, name in (expect.get("group_on") or {}).items():
        same({plain(name)}, set(places[group]), group)
    for name, count in (expect.get("counts") or {}).items():
        same(count, counts[plain(name)], name)
    for group in expect.get("together") or ():
        same(1, len(set(places[group])), f"endpoints of {group}")
        same(True, None not in places[group], f"{group} is placed")
    for one, other in expect.get("same") or ():
        same(set(places[one]), set(places[other]), f"{one} and {other}")
    for one, other in expect.get("different") or ():
        same(set(), set(places[one]) & set(places[other]), f"{one} and {other}")
    for group in expect.get("unassigned") or ():
        same({None}, set(places[group]), group)
    if "all_assigned" in expect:
        same(expect["all_assigned"], all(None not in each for each in places.values()), "all are placed")


RUNNERS: dict[tuple[str, str], Runner] = {
    **dict.fromkeys(((name, "scorer") for name in SCORERS), scorer),
    **{
        (name, "param-validation"): lambda case: param_validation(SPECS[case["component"]], case)
        for name in (*SCORERS, *PRODUCERS)
    },
    ("no-hit-lru-scorer", "sequence"): scorer_sequence,
    ("mm-embeddings-cache-producer", "function"): encoder_function,
    ("mm-embeddings-cache-producer", "sequence"): encoders,
    ("mm-embeddings-cache-producer", "producer"): encoders,
    ("p2p-source-producer", "producer"): source,
    ("p2p-source-producer", "producer-sampling"): source_sampling,
    ("p2p-source-producer", "pre-request"): source_header,
    ("p2p-source-producer", "sequence"): source_sequence,
    ("burst-prefix-cache-producer", "burst-assign"): burst,
}
