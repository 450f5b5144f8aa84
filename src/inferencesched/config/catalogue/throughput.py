"""Scorers for pools whose servers are not equally fast."""

from inferencesched.config.spec import Need, Parameters, PluginSpec, Workshop
from inferencesched.endpoints import PREFIX_TOKENS, STANDARD_SIGNALS
from inferencesched.errors import UnknownNameError
from inferencesched.scorers.seconds import CapacityScaledScorer, LoadSecondsScorer


class LoadSecondsParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``horizon``: from how many seconds on all are equally bad; the others are seconds too, and 0 leaves their terms out."""

    horizon: float = 10.0
    seconds_per_context_token: float = 0.0
    kv_barrier: float = 0.0


class CapacityScaledParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``signal``: the name of a standard signal; ``step``: what a request adds to it; ``full``: absolute from there on."""

    signal: str = "inflight_requests"
    step: float = 1.0
    full: float | None = None


def _seconds(p: LoadSecondsParameters, workshop: Workshop) -> LoadSecondsScorer:
    return LoadSecondsScorer(p.horizon, p.seconds_per_context_token, p.kv_barrier)


def _read_seconds(scorer: LoadSecondsScorer) -> LoadSecondsParameters:
    return LoadSecondsParameters(
        horizon=scorer.horizon,
        seconds_per_context_token=scorer.seconds_per_context_token,
        kv_barrier=scorer.kv_barrier,
    )


def _scaled(p: CapacityScaledParameters, workshop: Workshop) -> CapacityScaledScorer:
    known = {signal.name: signal for signal in STANDARD_SIGNALS}
    if p.signal not in known:
        raise UnknownNameError("signal", p.signal, list(known))
    return CapacityScaledScorer(known[p.signal], p.step, p.full)


SPECS = (
    PluginSpec(
        "load-seconds-scorer",
        ("scorer",),
        LoadSecondsParameters,
        _seconds,
        LoadSecondsScorer,
        _read_seconds,
        lambda p: (Need(PREFIX_TOKENS, "approx-prefix-cache-producer", required=False),),
        origin="own",
    ),
    PluginSpec(
        "capacity-scaled-scorer",
        ("scorer",),
        CapacityScaledParameters,
        _scaled,
        CapacityScaledScorer,
        lambda s: CapacityScaledParameters(signal=s.signal.name, step=s.step, full=s.full),
        origin="own",
    ),
)
