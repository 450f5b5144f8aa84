"""How does the ``flowControl`` section of a configuration become a flow controller?"""

import re
from collections.abc import Mapping
from fractions import Fraction
from math import ceil
from typing import Any, Final, cast

from inferencesched.config.catalogue.gateway import Held
from inferencesched.config.decode import found
from inferencesched.config.document import Band, Document, FlowControl, bands
from inferencesched.config.loaded import Loaded
from inferencesched.errors import ConfigError
from inferencesched.flowcontrol.bands import PriorityBand
from inferencesched.flowcontrol.config import FlowSettings, band_capacity
from inferencesched.flowcontrol.controller import FlowController
from inferencesched.flowcontrol.fairness import FairnessPolicy, GlobalStrict
from inferencesched.flowcontrol.flows import OrderingPolicy
from inferencesched.flowcontrol.gate import SaturationGate
from inferencesched.flowcontrol.policies import FirstCome, StaticLimit, UsageLimitPolicy
from inferencesched.flowcontrol.saturation import ConcurrencyDetector, ProjectingDetector
from inferencesched.flowcontrol.stages import Stages
from inferencesched.prefix.parameters import go_duration

_NUMBER: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(m|[numkMGTPE]|[KMGTPE]i)?")
_POWERS: Final = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
#: Seconds between two observations of llm-d's, and how long their effect may take beside that and their age.
_REFRESH: Final = 0.05
_MARGIN: Final = 0.25


def quantity(path: str, value: object) -> int:
    """Return a quantity as Kubernetes writes it as a whole number, rounded up; `ConfigError` for what is none, or below 0.

    >>> quantity("$", "1Gi"), quantity("$", "1.5k"), quantity("$", 7), quantity("$", None)
    (1073741824, 1500, 7, 0)
    """
    if value is None:
        return 0
    match = _NUMBER.fullmatch(str(value)) if isinstance(value, str | int | float) else None
    if match is None:
        raise ConfigError(path, found(value), "a quantity such as 100, '1k', '500M' or '1Gi'")
    suffix = match[2] or ""
    scale = Fraction(1024) ** _POWERS[suffix[0].replace("K", "k")] if suffix[1:] else Fraction(1000) ** _POWERS[suffix]
    number = ceil(Fraction(match[1]) * scale)
    if number < 0:
        raise ConfigError(path, found(value), "a quantity of at least 0")
    return number


def flow_settings(section: FlowControl | None, plugins: Mapping[str, object]) -> FlowSettings:
    """Return what a section says; `plugins` are those that it may refer to, by name.

    Errors: `ConfigError` with the path of what is wrong.
    """
    section = FlowControl() if section is None else section
    path = "$.flowControl"
    said = [
        _seconds(f"{path}.{name}", value)
        for name, value in (
            ("defaultRequestTTL", section.default_request_ttl),
            ("noEndpointRequestTTL", section.no_endpoint_request_ttl),
        )
    ]
    given: dict[str, Any] = {}
    if said[0] is not None:
        given["ttl"] = given["no_endpoint_ttl"] = said[0]
    if said[1] is not None:
        given["no_endpoint_ttl"] = said[1]
    read = {at: _band(at, band, plugins) for at, band in bands(section)}
    listed = [each for at, each in read.items() if at.startswith("$.flowControl.priorityBands[")]
    for i, band in enumerate(listed):
        if band.priority in [each.priority for each in listed[:i]]:
            raise ConfigError(f"{path}.priorityBands[{i}].priority", band.priority, "each priority once")
    default = read.get("$.flowControl.defaultPriorityBand")
    limits = _plugin(f"{path}.usageLimitPolicyPluginRef", section.usage_limit_policy_plugin_ref, plugins)
    detector = _detector(section, plugins)
    return FlowSettings(
        max_bytes=quantity(f"{path}.maxBytes", section.max_bytes),
        max_requests=quantity(f"{path}.maxRequests", section.max_requests),
        bands=tuple(listed),
        default_band=PriorityBand(0) if default is None else default,
        negative_band=read.get("$.flowControl.defaultNegativePriorityBand"),
        limits=StaticLimit() if limits is None else cast(UsageLimitPolicy, limits),
        enable_eviction=section.enable_eviction,
        confirmation_grace=_grace(detector),
        **given,
    )


def flow_controller(loaded: Loaded[Document]) -> FlowController:
    """Return the flow controller of an ``EndpointPickerConfig``; it starts empty.

    While the feature gate ``flowControl`` is closed it is that of llm-d's gate-off behaviour: no queue. Its saturation is that of
    the fullest stage, by the configured detector, with the in-flight credit that llm-d lacks. Errors: `ConfigError` for a plug-in that
    is known by name only.

    >>> from inferencesched.config import load
    >>> raw = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig", "featureGates": ["flowControl"]}
    >>> raw["flowControl"] = {"priorityBands": [{"priority": 10, "maxRequests": "1k"}], "enableEviction": True}
    >>> flow_controller(load(raw)).bands
    (Band(10, 0 waiting in 0 flows), Band(0, 0 waiting in 0 flows))
    """
    section = loaded.effective.flow_control
    detector = _detector(section, loaded.plugins)
    gate = SaturationGate(detector, stages=Stages())
    if not loaded.feature_gates.get("flowControl", False):
        return FlowSettings().controller(gate, mode="legacy")
    return flow_settings(section, loaded.plugins).controller(gate)


def _band(path: str, band: Band, plugins: Mapping[str, object]) -> PriorityBand:
    fairness = _plugin(f"{path}.fairnessPolicyRef", band.fairness_policy_ref, plugins)
    ordering = _plugin(f"{path}.orderingPolicyRef", band.ordering_policy_ref, plugins)
    return PriorityBand(
        band.priority,
        band_capacity(quantity(f"{path}.maxBytes", band.max_bytes), quantity(f"{path}.maxRequests", band.max_requests)),
        GlobalStrict() if fairness is None else cast(FairnessPolicy, fairness),
        FirstCome() if ordering is None else cast(OrderingPolicy, ordering),
    )


def _plugin(path: str, name: str, plugins: Mapping[str, object]) -> object | None:
    """Return the plug-in of a reference, None where nothing is said. Its kind was checked when the document was read."""
    if not name:
        return None
    if name not in plugins:
        raise ConfigError(path, name, "the name of a plug-in")
    plugin = plugins[name]
    if isinstance(plugin, Held):
        raise ConfigError(path, name, "a plug-in that the library has: this one it only reads")
    return plugin


def _detector(section: FlowControl | None, plugins: Mapping[str, object]) -> ProjectingDetector | None:
    name = section.saturation_detector.plugin_ref if section is not None and section.saturation_detector else ""
    detector = _plugin("$.flowControl.saturationDetector.pluginRef", name, plugins)
    return None if detector is None else cast(ProjectingDetector, detector)


def _grace(detector: ProjectingDetector | None) -> float:
    """Return how long the absence of a request takes to show, as llm-d derives it."""
    if detector is None:
        return FlowSettings().confirmation_grace
    return 0.01 if isinstance(detector, ConcurrencyDetector) else _REFRESH + detector.stale.after + _MARGIN


def _seconds(path: str, text: str | None) -> float | None:
    if text is None:
        return None
    seconds = go_duration(text)
    if seconds is None:
        raise ConfigError(path, text, "a duration such as '60s', '1m30s' or '500ms'")
    if seconds < 0:
        raise ConfigError(path, text, "a duration of at least 0, where 0 is no limit")
    return seconds
