"""Which server gets it, who may speak against that, and where do copies go? Everything after the queue."""

from collections.abc import Callable, Mapping
from typing import final

import numpy as np
import xxhash

from inferencesched.director.decision import Mirrored
from inferencesched.director.failures import Failures
from inferencesched.director.way import Lane, Way
from inferencesched.endpoints import Endpoints
from inferencesched.errors import (
    AdmissionDeniedError,
    NoEndpointsError,
    PreconditionFailedError,
    RequestRefusedError,
    StageFailedError,
)
from inferencesched.framework import Admitter, CycleState, Denial, SchedulingResult
from inferencesched.observability.events import Event, Scheduled
from inferencesched.request import InferenceRequest
from inferencesched.routing.candidates import within


@final
class Chooser:
    """Whom does the scheduler pick, among those that are allowed? Changes nothing but the generator."""

    __slots__ = ("_emit", "_failures", "_lanes")

    def __init__(self, lanes: Mapping[str, Lane], emit: Callable[[Event], None], failures: Failures) -> None:
        self._lanes = lanes
        self._emit = emit
        self._failures = failures

    def choose(self, way: Way, now: float, rng: np.random.Generator, tried: tuple[str, ...] = ()) -> SchedulingResult:
        """Return the scheduler's answer, none of those that were tried. Errors: `RequestRefusedError`."""
        serving, request = way.lane.serving, way.request
        try:
            endpoints = serving.pool.snapshot()
            if way.subset is not None or serving.screeners:
                endpoints = self._screened(way, endpoints, now, rng)
            admitters = tuple(_Forgiving(each, self._failures, way) for each in serving.admitters)
            result = serving.scheduler.schedule(
                request, endpoints, now=now, rng=rng, exclude=tried, admitters=admitters
            )
        except RequestRefusedError as error:
            self._emit(Scheduled(way.request_id, way.labels, error.outcome, "", "", None, request.input_tokens, None))
            raise
        except Exception as error:
            self._failures.told(way, "scheduler", serving.scheduler, error, "closed")
            raise
        target, prompt = result.target, request.input_tokens
        cached = None if prompt is None else prompt - target.tokens
        self._emit(
            Scheduled(way.request_id, way.labels, "success", target.endpoint, target.address, None, prompt, cached)
        )
        if serving.pre_request:
            self._checked(way, result)
        return result

    def mirrored(self, way: Way, now: float) -> tuple[Mirrored, ...]:
        """Return where copies go. Drawn from the request's own name: the primary's generator, pool and books are left alone."""
        assert way.match is not None  # it has mirrors
        mirrors: list[Mirrored] = []
        for mirror in way.match.mirrors:
            rng = np.random.default_rng(xxhash.xxh3_64_intdigest(f"{way.request_id}\0{mirror.pool}".encode()))
            lane = self._lanes.get(mirror.pool)
            if lane is None:
                way.trail.append(("mirror", f"{mirror.pool} is not there"))
                continue
            if not rng.random() < mirror.fraction:
                continue
            try:
                found = lane.serving.scheduler.schedule(way.request, lane.serving.pool.snapshot(), now=now, rng=rng)
            except RequestRefusedError as error:
                way.trail.append(("mirror", f"{mirror.pool}: {error.outcome}"))
            except Exception as error:  # noqa: BLE001  a plug-in of the mirror's, whatever it raises
                self._failures.told(way, "mirror", lane.serving.scheduler, error, self._failures.policy.mirror)
            else:
                mirrors.append(Mirrored(lane.name, found.endpoint, found.target.address))
        return tuple(mirrors)

    def _screened(self, way: Way, endpoints: Endpoints, now: float, rng: np.random.Generator) -> Endpoints:
        """Return whom the request may go to at all. Every screener sees everybody; what all keep is left."""
        if way.subset is not None:
            endpoints = endpoints.where(within(endpoints, way.subset))
        keep = np.ones(len(endpoints), dtype=np.bool_)
        cycle = CycleState(now, rng, endpoints.sequence)
        for screener in way.lane.serving.screeners:
            try:
                keep &= screener.screen(way.request, endpoints, cycle)
            except RequestRefusedError:
                raise
            except Exception as error:  # noqa: BLE001  a plug-in, whatever it raises
                self._failures.told(way, "screener", screener, error, self._failures.policy.screener)
        kept = endpoints.where(keep)
        if not len(kept):
            raise NoEndpointsError(f"no endpoint for request {way.request_id!r}: none is allowed")
        return kept

    def _checked(self, way: Way, result: SchedulingResult) -> None:
        """Ask everybody who may speak against a decision. All are asked; a failure counts before a denial, then the first."""
        first: RequestRefusedError | None = None
        broken: StageFailedError | None = None
        for plugin in way.lane.serving.pre_request:
            name = type(plugin).__name__
            try:
                denial = plugin.before_request(way.request, result)
            except RequestRefusedError as error:
                first = first or error
                continue
            except Exception as error:  # noqa: BLE001  a plug-in, whatever it raises
                try:
                    self._failures.told(way, "pre_request", plugin, error, self._failures.policy.pre_request)
                except StageFailedError as failed:
                    broken = broken or failed
                continue
            if denial is not None and first is None:
                if denial.status == PreconditionFailedError.status:
                    first = PreconditionFailedError(f"{name}: {denial.reason}")
                else:
                    first = AdmissionDeniedError(name, denial.reason, status=denial.status)
        if broken is not None:
            raise broken
        if first is not None:
            raise first


@final
class _Forgiving:
    """What does an admitter say, and what if it raises? Then the failure policy counts."""

    __slots__ = ("_admitter", "_failures", "_way")

    def __init__(self, admitter: Admitter, failures: Failures, way: Way) -> None:
        self._admitter = admitter
        self._failures = failures
        self._way = way

    def admit(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Denial | None:
        """Say nothing, or raise the denial in the admitter's own name."""
        try:
            denial = self._admitter.admit(request, endpoints, cycle)
        except RequestRefusedError:
            raise
        except Exception as error:  # noqa: BLE001  a plug-in, whatever it raises
            self._failures.told(self._way, "admitter", self._admitter, error, self._failures.policy.admitter)
            return None
        if denial is not None:
            raise AdmissionDeniedError(type(self._admitter).__name__, denial.reason, status=denial.status)
        return None
