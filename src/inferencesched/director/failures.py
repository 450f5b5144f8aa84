"""What becomes of a request when a plug-in of the gateway's raises?"""

from collections.abc import Callable
from typing import final

from inferencesched.director.stages import FailurePolicy, OnError
from inferencesched.director.way import Way
from inferencesched.errors import StageFailedError
from inferencesched.observability.events import Event, PluginFailed


@final
class Failures:
    """Who is told that a plug-in raised, and does the request go on?"""

    __slots__ = ("_emit", "policy")

    def __init__(self, emit: Callable[[Event], None], policy: FailurePolicy) -> None:
        self._emit = emit
        self.policy = policy

    def told(self, way: Way, stage: str, plugin: object, error: BaseException, policy: OnError) -> None:
        """Say that a plug-in raised; where its policy is ``open``, the request's trail keeps it. Errors: else `StageFailedError`."""
        refused = policy == "closed"
        name = type(plugin).__name__
        self._emit(PluginFailed(way.request_id, way.labels, stage, name, type(error).__name__, refused))
        if refused:
            raise StageFailedError(f"{stage} {name} failed: {type(error).__name__}") from error
        way.trail.append((stage, f"{name} failed with {type(error).__name__}, passed over"))

    def give_back(self, way: Way, now: float) -> None:
        """Cancel what was taken of limits and quotas: no server had it. A meter that fails is told, and the others go on."""
        receipts, way.receipts = way.receipts, []
        for meter, receipt in reversed(receipts):
            try:
                meter.cancel(receipt, now=now)
            except Exception as error:  # noqa: BLE001  whatever a store raises: the refusal comes first
                self.told(way, "meter", meter, error, "open")
