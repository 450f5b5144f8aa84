"""With which probability would a scheduler send a request where? What a decision log has to hold, if other policies are to be judged by it."""

import numpy as np

from inferencesched._running import ProfileRunner, kept_by
from inferencesched.endpoints import Endpoints
from inferencesched.errors import FilteredOutError, InvalidInputError
from inferencesched.framework import CycleState, StochasticPicker
from inferencesched.request import InferenceRequest
from inferencesched.scheduler import Scheduler


def propensities(
    scheduler: Scheduler, request: InferenceRequest, endpoints: Endpoints, *, now: float, rng: np.random.Generator
) -> dict[str, float]:
    """How likely is each endpoint to be picked? By name, of those whom the filters keep; they sum up to 1.

    Changes nothing but `rng`, which filters that draw use: ask with a copy of the one that decides. One profile, whose picker says so (`StochasticPicker`).
    Errors: `InvalidInputError` for several profiles or a picker that does not say; those of `Scheduler.schedule`. Cost: a decision's.

    >>> from inferencesched import ActiveRequestScorer, InferencePool, SchedulingProfile, SoftmaxPicker, WeightedScorer
    >>> pool = InferencePool()
    >>> pool.join("a"); pool.join("b")
    >>> profile = SchedulingProfile(SoftmaxPicker(temperature=1.0), (WeightedScorer(ActiveRequestScorer()),))
    >>> request = InferenceRequest(request_id="r-1", input_tokens=10)
    >>> propensities(Scheduler(profile), request, pool.snapshot(), now=0.0, rng=np.random.default_rng(0))
    {'a': 0.5, 'b': 0.5}
    """
    if len(scheduler.profiles) != 1:
        raise InvalidInputError("scheduler.profiles", list(scheduler.profiles), "one profile")
    (profile,) = scheduler.profiles.values()
    if not isinstance(profile.picker, StochasticPicker):
        raise InvalidInputError("picker", profile.picker, "one that says its propensities")
    endpoints = scheduler.candidates(request, endpoints, now, ())
    cycle = CycleState(now, rng, endpoints.sequence)
    kept, _ = scheduler.produce(request, endpoints, cycle)
    for plugin in profile.filters:
        kept = kept_by(plugin, request, kept, cycle)
        if not len(kept):
            raise FilteredOutError(f"no endpoint for request {request.request_id!r}: the filters keep nobody")
    totals = ProfileRunner(profile).program.totals(request, kept, cycle)
    likely = profile.picker.propensities(totals, kept)
    return dict(zip(kept.names, likely.tolist(), strict=True))
