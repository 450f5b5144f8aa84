"""How the flow controller is set up: options, the section of a file, bands and their policies."""

from collections.abc import Mapping
from typing import Any

from inferencesched.config import flow_settings
from inferencesched.config.catalogue import fairness
from inferencesched.config.decode import decode
from inferencesched.config.document import FlowControl
from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol import FlowSettings, PriorityBand
from inferencesched.flowcontrol.config import band_capacity
from tests.parity.cases import Case, Mismatch, Runner, same, unknown, within
from tests.parity.specs import NoPlugins

SPECS = {spec.name: spec for spec in fairness.SPECS}
OPTIONS = {
    "default_request_ttl_s": "ttl",
    "no_endpoint_request_ttl_s": "no_endpoint_ttl",
    "expiry_cleanup_interval_s": "expiry_cleanup_interval",
    "enqueue_channel_buffer_size": "enqueue_channel_buffer_size",
    "max_revocations_per_decision": "max_revocations",
    "eviction_confirmation_grace_s": "confirmation_grace",
    "eviction_confirmation_timeout_s": "confirmation_timeout",
    "enable_eviction": "enable_eviction",
    "max_bytes": "max_bytes",
    "max_requests": "max_requests",
    "flow_gc_timeout_s": "flow_gc_timeout",
    "priority_band_gc_timeout_s": "band_gc_timeout",
}


def template(said: Mapping[str, Any] | None, priority: int = 0) -> PriorityBand:
    """Return a band as a case describes it."""
    if said is None:
        raise InvalidInputError("band", None, "a band")
    unknown_names = set(said) - {"priority", "max_bytes", "max_requests", "ordering", "fairness"}
    if unknown_names:
        raise unknown("band", sorted(unknown_names))
    policies: dict[str, Any] = {}
    for kind in ("ordering", "fairness"):
        name = said.get(kind)
        if name is not None:
            if name not in SPECS or SPECS[name].kinds[0] != f"{kind}-policy":
                raise InvalidInputError(kind, name, "the name of a policy")
            spec = SPECS[name]
            policies[kind] = spec.build(decode(spec.parameters, {}), NoPlugins(name))
    capacity = band_capacity(said.get("max_bytes") or 0, said.get("max_requests") or 0)
    return PriorityBand(said.get("priority", priority), capacity, **policies)


def describe(band: PriorityBand) -> dict[str, Any]:
    names = {spec.made: spec.name for spec in reversed(fairness.SPECS)}
    return {
        "max_bytes": band.capacity.size_bytes,
        "max_requests": band.capacity.requests,
        "ordering": names[type(band.ordering)],
        "fairness": names[type(band.fairness)],
    }


def settings_of(options: Mapping[str, Any]) -> FlowSettings:
    given: dict[str, Any] = {}
    for name, value in options.items():
        if name == "bands":
            given["bands"] = tuple(template(each) for each in value)
        elif name in ("default_band", "default_negative_band"):
            given["negative_band" if "negative" in name else name] = template(value)
        elif name in OPTIONS:
            given[OPTIONS[name]] = value
        else:
            raise unknown("option", name)
    return FlowSettings(**given)


def held(case: Case, settings: FlowSettings) -> None:
    """Hold settings against what is expected; a controller is made of them, too."""
    settings.controller()
    for name, value in case["expect"].get("config", {}).items():
        if name == "band":
            for priority, wanted in value.items():
                within(wanted, describe(settings.band(int(priority))), f"band {priority}")
        elif name in ("default_band", "default_negative_band"):
            band = settings.default_band if name == "default_band" else settings.negative_band
            if band is None:
                raise Mismatch(value, None, name)
            within(value, describe(band), name)
        elif name in OPTIONS:
            same(value, getattr(settings, OPTIONS[name]), name)
        else:
            raise unknown("setting", name)


def options(case: Case) -> None:
    valid = case["expect"]["valid"]
    try:
        settings = settings_of(case["inputs"]["options"])
    except InvalidInputError as error:
        if valid:
            raise Mismatch("settings that are valid", str(error)) from error
        return
    if not valid:
        raise Mismatch("a refusal", settings)
    held(case, settings)


def api(case: Case) -> None:
    """The section of a file, read as it would be from there; seconds are written as durations."""
    said, valid = case["inputs"]["api"], case["expect"]["valid"]
    raw: dict[str, Any] = {}
    for name, value in (said or {}).items():
        raw[name.removesuffix("_s")] = f"{value}s" if name.endswith("_s") else value
    try:
        settings = flow_settings(None if said is None else decode(FlowControl, raw, "$.flowControl"), {})
    except InvalidInputError as error:
        if valid:
            raise Mismatch("settings that are valid", str(error)) from error
        return
    if not valid:
        raise Mismatch("a refusal", settings)
    held(case, settings)


RUNNERS: dict[tuple[str, str], Runner] = {
    ("registry.config", "flow control: config"): options,
    ("controller.config", "flow control: config"): options,
    ("controller.config.api", "flow control: config"): api,
}
