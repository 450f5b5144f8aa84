"""Tokens of pictures and videos, and pages of metrics."""

import json
from collections.abc import Mapping
from typing import Any

import xxhash

import inferencesched as isched
from inferencesched.errors import (
    InvalidInputError,
    MetricsPageError,
)
from inferencesched.observability.engines import (
    ENGINE_LABEL,
    EngineMetrics,
    MetricsExtractor,
    lora_adapters,
)
from inferencesched.observability.pages import Series, labels_match, latest, parse_metric_spec
from inferencesched.routing.body import parse_body
from inferencesched.routing.estimates import FrameTokens, VideoMetadata, VideoTokens, video_metadata
from inferencesched.routing.tokens import ByteTokenizer, pack_bytes
from tests.parity.cases import Case, Runner, same, unknown

# --- tokens ------------------------------------------------------------------------------------------------------


def frame_of(said: Mapping[str, Any], outer: Mapping[str, Any]) -> FrameTokens:
    size = outer.get("defaultResolution", {})
    mode = said.get("mode", "static" if "static" in said else "dynamic")
    static = said.get("static", {})
    return FrameTokens(
        factor=said.get("dynamic", {}).get("factor", 1024),
        static=static.get("numTokensPerFrame", static.get("numTokens", static.get("tokens")))
        if mode == "static"
        else None,
        width=size.get("width", 640),
        height=size.get("height", 360),
    )


def placeholder(case: Case) -> None:
    params = case["params"]
    estimate = params["estimate"]
    if params["modality"] == "image":
        said = estimate.get("image", {})
        got = frame_of(said, said).tokens(params.get("decoded_width") or 0, params.get("decoded_height") or 0)
        return same(case["expect"]["value"], got)
    if params["modality"] != "video":
        raise unknown("modality", params["modality"])
    said = estimate.get("video", {})
    frames = said.get("frames", {})
    sampled, strided = frames.get("sampled", {}), frames.get("strided", {})
    video = VideoTokens(
        frame=frame_of(said.get("tokensPerFrame", {}), said),
        frames=frames.get("mode", "sampled"),
        sample_fps=sampled.get("sampleFPS", 2.0),
        temporal_patch=sampled.get("temporalPatchSize", 1),
        stride=strided.get("frameStride", 1),
        duration=said.get("defaultDuration", 10.0),
        source_fps=strided.get("defaultSourceFPS", 24.0),
        least=frames.get("minFrames", 1),
        most=frames.get("maxFrames"),
        most_tokens=said.get("maxVideoTokens"),
    )
    known = VideoMetadata(**{name: params["header_metadata"].get(name, 0) for name in VideoMetadata._fields})
    return same(case["expect"]["value"], video.tokens(known))


def token_function(case: Case) -> None:
    params, expect = case["params"], case["expect"]
    function = params["function"]
    if function == "estimate_placeholder_tokens":
        placeholder(case)
    elif function == "parse_video_metadata_headers":
        for name, value in expect["value"].items():
            same(value, getattr(video_metadata(params["headers"]), name), name)
    elif function == "pack_bytes":
        text = params["text"].encode()
        ids = pack_bytes(text, params["bytes_per_token"])
        same(expect["num_tokens"], len(ids), "num_tokens")
        equal = xxhash.xxh64_intdigest(ids.astype("<u4").tobytes()) == xxhash.xxh64_intdigest(text)
        same(expect["xxhash64_of_le_token_bytes_equals_xxhash64_of_text"], equal)
    elif function == "estimate_tokens":
        ids = params["input_token_ids"]
        kind, field = {
            "generate": ("vllm_generate", "token_ids"),
            "completions": ("completions", "prompt"),
            "embeddings": ("embeddings", "input"),
        }[params["endpoint_kind"]]
        body = parse_body(json.dumps({"model": "m", field: ids}).encode(), kind)  # type: ignore[arg-type]
        same(expect["value"], ByteTokenizer().encode(body).tolist())
    else:
        raise unknown("function", function)


# --- pages of metrics --------------------------------------------------------------------------------------------


def series_of(families: Mapping[str, Any]) -> dict[str, list[Series]]:
    return {
        name: [Series(each["labels"], each["value"], each.get("timestamp_ms", 0)) for each in series]
        for name, series in families.items()
    }


def metrics_function(case: Case) -> None:
    params, expect = case["params"], case["expect"]
    function = params["function"]
    if function == "parse_metric_spec":
        try:
            spec = parse_metric_spec(params["input"])
        except MetricsPageError:
            return same(expect.get("error", False), True, "error")
        assert not expect.get("error"), spec
        return same(expect["value"], None if spec is None else {"name": spec.name, "labels": dict(spec.labels)})
    if function == "labels_match":
        return same(expect["value"], labels_match(params["metric_labels"], params["spec_labels"]))
    if function == "latest_metric_value":
        families = series_of(params["families"])
        newest = latest(families.get(params["name"], ()), params["labels"])
        if expect.get("error"):
            return same(None, newest)
        return same(expect["value"], None if newest is None else newest.value)
    if function == "lora_metric":
        families = series_of(params["families"])
        adapters = lora_adapters(families.get("vllm:lora_requests_info", ()))
        wanted = expect["value"]
        names = sorted(adapters.running | adapters.waiting) if adapters is not None else []
        same(sorted(wanted["adapters"]), names, "adapters")
        return same(wanted["max_loras"], 0 if adapters is None else adapters.capacity, "max_loras")
    if function == "engine_type":
        return same(expect["value"], MetricsExtractor().engine_of(case["endpoints"][0].get("labels")))
    raise unknown("function", function)


def extractor_of(params: Mapping[str, Any]) -> MetricsExtractor:
    """Return the extractor that a configuration describes."""
    engines = []
    for each in params.get("engineConfigs", ()):
        custom = {}
        for said in each.get("customMetrics", ()):
            spec = parse_metric_spec(said.get("metricSpec", ""))
            if spec is None:
                raise InvalidInputError("metricSpec", "", "a spec: a metric spec cannot be empty")
            custom[isched.Signal(said["attributeKey"])] = spec

        def specs(name: str, each: Mapping[str, Any] = each) -> tuple[Any, ...]:
            spec = parse_metric_spec(each.get(name, ""))
            return () if spec is None else (spec,)

        engines.append(
            EngineMetrics(
                each["name"],
                queued=specs("queuedRequestsSpec"),
                running=specs("runningRequestsSpec"),
                kv_usage=specs("kvUsageSpec"),
                lora=specs("loraSpec"),
                cache_info=specs("cacheInfoSpec"),
                custom=custom,
            )
        )
    return MetricsExtractor(
        engines, params.get("defaultEngine") or "vllm", params.get("engineLabelKey") or ENGINE_LABEL
    )


def metrics_params(case: Case) -> None:
    params, expect = case["params"], case["expect"]
    try:
        made = extractor_of(params)
    except InvalidInputError as refusal:
        said = str(refusal)
        words = {
            "not found in engineConfigs": "one of",
            "already exists": "already exists",
            "spec cannot be empty": "empty",
        }
        same(expect["valid"], False, said)
        same(True, words.get(expect["error_contains"], expect["error_contains"]) in said, said)
        return
    assert expect["valid"], made
    effective = expect["effective"]
    same(effective["defaultEngine"], made.default_engine, "defaultEngine")
    same(effective["engineLabelKey"], made.engine_label, "engineLabelKey")


def metrics_extract(case: Case) -> None:
    expect = case["expect"]
    lines = []
    for name, series in case["families"].items():
        for each in series:
            labels = ",".join(f'{key}="{value}"' for key, value in each["labels"].items())
            lines.append(f"{name}{{{labels}}} {each['value']}" if labels else f"{name} {each['value']}")
    made = extractor_of(case["params"])
    wanted = expect["metrics"]
    try:
        reading = made.read("\n".join([*lines, ""]), case["endpoints"][0].get("labels"))
    except MetricsPageError:
        same(True, expect.get("error", False), "error")
        assert "unchanged" in wanted
        return
    if "error" in expect:
        same(expect["error"], bool(reading.missing), "error")
    if "changed" in wanted:
        assert reading.columns
        return
    names = {
        "waiting_queue_size": isched.WAITING_QUEUE_SIZE,
        "running_requests": isched.RUNNING_REQUESTS,
        "kv_cache_usage": isched.KV_CACHE_USAGE,
        "cache_block_size": isched.KV_BLOCK_SIZE,
        "cache_num_blocks": isched.KV_BLOCKS,
    }
    for name, value in wanted.items():
        if name not in names:
            raise unknown("metric", name)
        same(value, reading.columns.get(names[name]), name)


RUNNERS: dict[tuple[str, str], Runner] = {
    ("token-producer", "function"): token_function,
    ("core-metrics-extractor", "function"): metrics_function,
    ("core-metrics-extractor", "param-validation"): metrics_params,
    ("core-metrics-extractor", "metrics-extract"): metrics_extract,
}
