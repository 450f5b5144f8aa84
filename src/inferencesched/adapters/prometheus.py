"""How does `prometheus_client` show the registry's numbers beside its own?

::

    from prometheus_client import REGISTRY
    REGISTRY.register(RegistryCollector(sink.registry))

Nothing is copied beforehand: each scrape reads the series as they are.
"""

from collections.abc import Iterator
from typing import final

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from inferencesched.observability.registry import Registry


@final
class RegistryCollector(Collector):
    """Which metrics has this registry? A collector of `prometheus_client`.

    >>> from prometheus_client import CollectorRegistry, generate_latest
    >>> from inferencesched.observability import FAMILIES, Registry
    >>> registry, shown = Registry(FAMILIES), CollectorRegistry()
    >>> registry.value("ready_endpoints", "llama").value = 3.0
    >>> shown.register(RegistryCollector(registry))
    >>> generate_latest(shown).decode().splitlines()[-1]
    'llm_d_epp_ready_endpoints{name="llama"} 3.0'
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def describe(self) -> Iterator[Metric]:
        """Walk the families without their numbers, for `prometheus_client` to know whose names these are."""
        for family in self._registry.families:
            yield Metric(family.name.removesuffix("_total"), family.help, family.kind)

    def collect(self) -> Iterator[Metric]:
        """Walk the families that have numbers now."""
        for family in self._registry.families:
            metric: Metric | None = None
            for name, labels, value in self._registry.samples(family):
                if metric is None:
                    metric = Metric(family.name.removesuffix("_total"), family.help, family.kind)
                metric.add_sample(name, dict(labels), value)
            if metric is not None:
                yield metric
