"""What does a configuration say of flow control, and which controller is that?

The settings of llm-d's router, with its defaults and its meanings of zero, and the way from there to a `FlowController`. A file
is read by `inferencesched.config.flow_settings`.
"""

from dataclasses import dataclass
from math import inf
from typing import Final

from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.flowcontrol.bands import BAND_CAPACITY, PriorityBand
from inferencesched.flowcontrol.budgets import QueueBudget
from inferencesched.flowcontrol.controller import FlowController, Mode
from inferencesched.flowcontrol.eviction import PacedReclaimer
from inferencesched.flowcontrol.flows import Capacity
from inferencesched.flowcontrol.policies import Gate, StaticLimit, UsageLimitPolicy

_PLAIN: Final = PriorityBand(0)
_OPEN: Final = StaticLimit()


def band_capacity(max_bytes: int = 0, max_requests: int = 0) -> Capacity:
    """Return what a band may hold; 0 is llm-d's default, a band there is never unlimited.

    >>> band_capacity(max_requests=10)
    Capacity(requests=10, size_bytes=1000000000, tokens=None)
    """
    return Capacity(
        whole_number("maxRequests", max_requests) or BAND_CAPACITY.requests,
        whole_number("maxBytes", max_bytes) or BAND_CAPACITY.size_bytes,
    )


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """How does llm-d's router have requests wait?

    Parameters
    ----------
    ttl: ``defaultRequestTTL``, seconds; 0 is no limit.
    no_endpoint_ttl: ``noEndpointRequestTTL``, seconds; 0 is no limit. In a file that says only the other one, it is that.
    max_bytes, max_requests: what may wait in all bands together; 0 is no limit.
    bands: ``priorityBands``. Priority 0 is always there.
    default_band: what other bands are like, whatever its priority.
    negative_band: what other bands below 0 are like; None is as all others.
    limits: ``usageLimitPolicyPluginRef``.
    flow_gc_timeout, band_gc_timeout: seconds after which an idle flow and, behind that, an empty band are forgotten.
    enable_eviction, max_revocations, confirmation_grace, confirmation_timeout: see `PacedReclaimer`.
    expiry_cleanup_interval, enqueue_channel_buffer_size: checked, and of no effect: expiry is exact, and there is no channel.

    Defaults are llm-d's. Errors: `InvalidInputError`.

    >>> FlowSettings(max_requests=100).controller().bands
    (Band(0, 0 waiting in 0 flows),)
    """

    ttl: float = 60.0
    no_endpoint_ttl: float = 60.0
    max_bytes: int = 0
    max_requests: int = 0
    bands: tuple[PriorityBand, ...] = ()
    default_band: PriorityBand = _PLAIN
    negative_band: PriorityBand | None = None
    limits: UsageLimitPolicy = _OPEN
    flow_gc_timeout: float = 300.0
    band_gc_timeout: float = 600.0
    enable_eviction: bool = False
    max_revocations: int = 2
    confirmation_grace: float = 0.5
    confirmation_timeout: float = 10.0
    expiry_cleanup_interval: float = 1.0
    enqueue_channel_buffer_size: int = 100

    def __post_init__(self) -> None:
        for name, value in (("defaultRequestTTL", self.ttl), ("noEndpointRequestTTL", self.no_endpoint_ttl)):
            if not 0 <= value < inf:
                raise InvalidInputError(name, value, "seconds of at least 0, where 0 is no limit")
        for name, value in (
            ("flowGCTimeout", self.flow_gc_timeout),
            ("expiryCleanupInterval", self.expiry_cleanup_interval),
        ):
            if not 0 < value < inf:
                raise InvalidInputError(name, value, "seconds above 0")
        if not self.flow_gc_timeout <= self.band_gc_timeout < inf:
            allowed = f"seconds of at least those of a flow, {self.flow_gc_timeout}"
            raise InvalidInputError("priorityBandGCTimeout", self.band_gc_timeout, allowed)
        whole_number("maxBytes", self.max_bytes)
        whole_number("maxRequests", self.max_requests)
        whole_number("enqueueChannelBufferSize", self.enqueue_channel_buffer_size)
        self._reclaimer()
        taken: set[int] = set()
        for band in self.bands:
            if band.priority in taken:
                raise InvalidInputError("priorityBands", band.priority, "each priority once")
            taken.add(band.priority)

    @property
    def budget(self) -> QueueBudget:
        """How long may a request wait?"""
        return QueueBudget(ttl=self.ttl or None, no_endpoint_ttl=self.no_endpoint_ttl or None)

    @property
    def capacity(self) -> Capacity:
        """How much may wait in all?"""
        return Capacity(self.max_requests or None, self.max_bytes or None)

    def band(self, priority: int) -> PriorityBand:
        """Return what the band of a priority is like."""
        for each in self.bands:
            if each.priority == priority:
                return each
        template = self.default_band if priority >= 0 or self.negative_band is None else self.negative_band
        return template.at(priority)

    def controller(self, gate: Gate | None = None, *, mode: Mode = "queue") -> FlowController:
        """Return a controller with these settings; without a gate everything goes at once."""
        return FlowController(
            bands=self.bands,
            default=self.default_band,
            sheddable=self.negative_band,
            gate=gate,
            limits=self.limits,
            capacity=self.capacity,
            budget=self.budget,
            mode=mode,
            reclaimer=self._reclaimer() if self.enable_eviction else None,
            flow_ttl=self.flow_gc_timeout,
            band_ttl=self.band_gc_timeout,
        )

    def _reclaimer(self) -> PacedReclaimer:
        return PacedReclaimer(
            most=self.max_revocations, grace=self.confirmation_grace, timeout=self.confirmation_timeout
        )
