"""Who fails is left alone for a while."""

from inferencesched.config.spec import Need, Parameters, PluginSpec, Workshop
from inferencesched.filters.health import HealthFilter
from inferencesched.producers.outlier import OutlierPolicy, OutlierProducer
from inferencesched.signals import HEALTH


class HealthParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``minimum``: the health that is asked for; 0.5 lets trials through, 1 does not."""

    minimum: float = 0.5


class OutlierParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """The fields of `OutlierPolicy`; times in seconds."""

    consecutive_failures: int = 5
    interval: float = 10.0
    stdev_factor: float = 1.9
    stdev_minimum_hosts: int = 5
    stdev_request_volume: int = 100
    failure_share: float | None = None
    failure_minimum_hosts: int = 5
    failure_request_volume: int = 50
    base_ejection_time: float = 30.0
    max_ejection_time: float = 300.0
    max_ejected: float = 0.5
    trials: int = 1
    trial_successes: int = 2
    forgiven: tuple[str, ...] = ("client-disconnect", "evicted", "CancelledError", "cancelled", "blocked", "revoked")


def _producer(p: OutlierParameters, workshop: Workshop) -> OutlierProducer:
    return OutlierProducer(OutlierPolicy(**{name: getattr(p, name) for name in p.__struct_fields__}))


def _read(producer: OutlierProducer) -> OutlierParameters:
    policy = producer.policy
    return OutlierParameters(**{name: getattr(policy, name) for name in OutlierParameters.__struct_fields__})


SPECS = (
    PluginSpec(
        "health-filter",
        ("filter",),
        HealthParameters,
        lambda p, w: HealthFilter(p.minimum),
        HealthFilter,
        lambda plugin: HealthParameters(minimum=plugin.minimum),
        lambda p: (Need(HEALTH, "outlier-producer"),),
        origin="own",
    ),
    PluginSpec(
        "outlier-producer",
        ("producer",),
        OutlierParameters,
        _producer,
        OutlierProducer,
        _read,
        origin="own",
    ),
)
