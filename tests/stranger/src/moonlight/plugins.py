"""A scorer, and what a configuration calls it."""

from dataclasses import dataclass

import numpy as np

from inferencesched import WAITING_QUEUE_SIZE, CycleState, Endpoints, InferenceRequest, InvalidInputError, Reads
from inferencesched.config import Parameters, PluginSpec, Workshop


@dataclass(frozen=True, slots=True)
class QueueHalfLife:
    """How good is a queue, if `half_life` more requests make it half as good? Unknown is 0."""

    half_life: float = 8.0

    def __post_init__(self) -> None:
        if not self.half_life > 0:
            raise InvalidInputError("half_life", self.half_life, "requests above 0")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """The queue, of which less is better."""
        return (Reads(WAITING_QUEUE_SIZE, "lower"),)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> np.ndarray:
        """Return ``2 ** (-queue / half_life)``."""
        scores = np.exp2(-endpoints[WAITING_QUEUE_SIZE] / self.half_life)
        return np.nan_to_num(scores, nan=0.0)


class HalfLifeParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``halfLife``: how many requests more make a queue half as good."""

    half_life: float = 8.0


def _build(parameters: HalfLifeParameters, workshop: Workshop) -> QueueHalfLife:
    return QueueHalfLife(parameters.half_life)


SPECS = (
    PluginSpec(
        "queue-half-life-scorer",
        ("scorer",),
        HalfLifeParameters,
        _build,
        QueueHalfLife,
        lambda scorer: HalfLifeParameters(half_life=scorer.half_life),
        origin="own",
    ),
)
