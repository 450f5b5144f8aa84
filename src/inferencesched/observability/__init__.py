"""What happened, how often, how long did it take, and how many servers would be right?"""

from inferencesched.observability.autoscaling import (
    Autoscaler,
    ScalingPolicy,
    ScalingSignal,
    desired_replicas,
    external_metrics,
    recommended,
)
from inferencesched.observability.dashboard import PANELS, Panel, dashboard
from inferencesched.observability.engines import ENGINES, EngineMetrics, EngineReading, MetricsExtractor
from inferencesched.observability.events import EventSink, Labels, Sinks
from inferencesched.observability.exposition import CONTENT_TYPE, exposition
from inferencesched.observability.families import FAMILIES, Family, family
from inferencesched.observability.labels import BoundedLabel
from inferencesched.observability.pages import MetricSpec, parse_metric_spec, parse_page
from inferencesched.observability.registry import Registry, Sample
from inferencesched.observability.sink import MetricsSink

__all__ = [
    "CONTENT_TYPE",
    "ENGINES",
    "FAMILIES",
    "PANELS",
    "Autoscaler",
    "BoundedLabel",
    "EngineMetrics",
    "EngineReading",
    "EventSink",
    "Family",
    "Labels",
    "MetricSpec",
    "MetricsExtractor",
    "MetricsSink",
    "Panel",
    "Registry",
    "Sample",
    "ScalingPolicy",
    "ScalingSignal",
    "Sinks",
    "dashboard",
    "desired_replicas",
    "exposition",
    "external_metrics",
    "family",
    "parse_metric_spec",
    "parse_page",
    "recommended",
]
