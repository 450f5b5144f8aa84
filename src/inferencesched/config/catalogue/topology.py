"""Nearness to a peer, by the names of llm-d's router."""

from typing import Final

from inferencesched.config.catalogue.gateway import Held
from inferencesched.config.spec import Parameters, PluginRef, PluginSpec, Workshop
from inferencesched.errors import InvalidInputError
from inferencesched.filters.topology import TopologyAffinityFilter
from inferencesched.scorers.topology import TopologyAffinityScorer
from inferencesched.topology import LABELS, Affinity, TopologyLabels


class LabelsParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """Which label tells ``hostname``, ``rack``, ``zone`` and ``region``."""

    hostname: str = LABELS["hostname"]
    rack: str = LABELS["rack"]
    zone: str = LABELS["zone"]
    region: str = LABELS["region"]


class TopologyParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``producerName`` (later ``topologyProducerName``): which ``topology-extractor`` knows the labels; ``labels``: our own way of
    naming them here; ``peerTopologyHeader``: which request header tells where a peer of another pool is.
    """

    producer_name: PluginRef = ""
    topology_producer_name: PluginRef = ""
    labels: LabelsParameters = LabelsParameters()
    peer_topology_header: str = ""


class TopologyFilterParameters(TopologyParameters, frozen=True, kw_only=True, rename="camel"):
    """Those of the scorer, and ``minAffinity``: how near is near enough."""

    min_affinity: Affinity = "host"


class TopologyScorerParameters(TopologyParameters, frozen=True, kw_only=True, rename="camel"):
    """Those of both, and what each level is worth: ``host``, ``rack``, ``zone``, ``region`` (llm-d's are fixed)."""

    host: float = 1.0
    rack: float = 0.2
    zone: float = 0.05
    region: float = 0.02


def _labels(p: TopologyParameters, workshop: Workshop) -> TopologyLabels:
    name = p.producer_name or p.topology_producer_name
    if not name:
        return TopologyLabels(p.labels.hostname, p.labels.rack, p.labels.zone, p.labels.region)
    extractor = workshop.plugin(name)
    if not isinstance(extractor, Held):
        raise InvalidInputError("producerName", name, "the name of a topology-extractor")
    said = extractor.parameters.values
    return TopologyLabels(*(str(said.get(level) or key) for level, key in LABELS.items()))


def _told(labels: TopologyLabels) -> LabelsParameters:
    return LabelsParameters(hostname=labels.hostname, rack=labels.rack, zone=labels.zone, region=labels.region)


def _filter(p: TopologyFilterParameters, workshop: Workshop) -> TopologyAffinityFilter:
    return TopologyAffinityFilter(p.min_affinity, _labels(p, workshop), p.peer_topology_header)


def _read_filter(plugin: TopologyAffinityFilter) -> TopologyFilterParameters:
    return TopologyFilterParameters(
        min_affinity=plugin.min_affinity, labels=_told(plugin.labels), peer_topology_header=plugin.peer_header
    )


def _scorer(p: TopologyScorerParameters, workshop: Workshop) -> TopologyAffinityScorer:
    return TopologyAffinityScorer(p.host, p.rack, p.zone, p.region, _labels(p, workshop), p.peer_topology_header)


def _read_scorer(plugin: TopologyAffinityScorer) -> TopologyScorerParameters:
    return TopologyScorerParameters(
        host=plugin.host,
        rack=plugin.rack,
        zone=plugin.zone,
        region=plugin.region,
        labels=_told(plugin.labels),
        peer_topology_header=plugin.peer_header,
    )


SPECS: Final = (
    PluginSpec(
        "topology-affinity-filter",
        ("filter",),
        TopologyFilterParameters,
        _filter,
        TopologyAffinityFilter,
        _read_filter,
        stability="alpha",
    ),
    PluginSpec(
        "topology-affinity-scorer",
        ("scorer",),
        TopologyScorerParameters,
        _scorer,
        TopologyAffinityScorer,
        _read_scorer,
        stability="alpha",
    ),
)
