"""What does a request want, of which pool, and may its sender have it? Everything before the queue.

In this order, each stage optional: identify, read the body, rewrite the model, guard, route, measure, limit. Identity comes first,
so that nobody's body is read before it is known who they are; limits come last, so that nothing is taken for what is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import xxhash

from inferencesched.director.failures import Failures
from inferencesched.director.stages import Identifies
from inferencesched.director.way import Lane, Way
from inferencesched.errors import (
    BodyError,
    GuardBlockedError,
    NoEndpointsError,
    RequestRefusedError,
    StageFailedError,
    UnroutedError,
)
from inferencesched.governance.guards import Block, GuardChain, Redact
from inferencesched.governance.meters import Identity, Meter
from inferencesched.observability.events import Labels, Received, Rewritten
from inferencesched.producers.inflight import estimated_output_tokens
from inferencesched.producers.latency import objectives_of
from inferencesched.request import InferenceRequest
from inferencesched.routing.body import BodyKind, RequestBody, parse_body
from inferencesched.routing.headers import FAIRNESS_ID, MODEL_NAME, OBJECTIVE, header
from inferencesched.routing.objectives import ModelChoice, ModelTable
from inferencesched.routing.routes import RouteQuery, RouteTable
from inferencesched.routing.tokens import ByteTokenizer, Tokenizer
from inferencesched.sessions import SessionSource

DEFAULT_FLOW: Final = "default-flow"
_TRUSTING: Final = Identity()


class Preparer:
    """Who turns bytes and headers into a request for one pool? The director's first half.

    Stateless but for what its parts hold; `Director` documents the parameters.
    """

    __slots__ = (
        "_alone",
        "_by_model",
        "_emit",
        "_failures",
        "_guards",
        "_identity",
        "_kinds",
        "_lanes",
        "_max_bytes",
        "_meters",
        "_models",
        "_output_ratio",
        "_routes",
        "_sessions",
        "_splits",
        "_tokenizer",
    )

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        *,
        emit: Any,
        models: ModelTable | None,
        routes: RouteTable | None,
        guards: GuardChain | None,
        identity: Identifies | None,
        meters: Sequence[Meter[Any]],
        tokenizer: Tokenizer | None,
        sessions: Sequence[SessionSource],
        failures: Failures,
        max_bytes: int,
        output_ratio: float,
    ) -> None:
        self._lanes = lanes
        self._alone = next(iter(lanes.values())) if len(lanes) == 1 else None
        self._by_model = [(lane.serving.models, lane) for lane in lanes.values()]
        self._emit = emit
        self._models = models
        self._routes = routes
        self._splits = routes is not None and routes.divides
        self._guards = guards
        self._identity = identity
        self._meters = tuple(meters)
        self._tokenizer: Tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
        self._sessions = tuple(sessions)
        self._failures = failures
        self._max_bytes = max_bytes
        self._output_ratio = output_ratio

    def prepare(
        self,
        way: Way,
        raw: bytes,
        kind: BodyKind,
        path: str,
        claims: Mapping[str, object] | None,
        now: float,
        rng: np.random.Generator,
    ) -> None:
        """Fill in all that the queue and the scheduler need. Errors: `RequestRefusedError`, and nothing is taken then."""
        headers = way.headers
        if self._identity is not None:
            way.identity = self._identified(way, headers, claims, now)
        way.body = body = parse_body(raw, kind, max_bytes=self._max_bytes)
        way.streaming = body.stream
        way.priority = self._priority(way, headers)
        self._choose_model(way, body, rng)
        choice = way.choice
        fairness_id = way.identity.fairness_id or self._flow(headers)
        way.labels = labels = Labels(body.model, choice.target, fairness_id, way.priority, "", way.identity.tenant)
        self._emit(Received(way.request_id, labels, way.size_bytes, now, kind))
        if choice.rewrite:
            way.trail.append(("model", f"{choice.model} is {choice.target} (rewrite {choice.rewrite})"))
            self._emit(Rewritten(way.request_id, choice.rewrite, choice.model, choice.target))
        if self._guards is not None:
            body = self._guarded(way, body, now)
        self._route(way, path, headers, rng)
        way.labels = labels._replace(pool=way.lane.name)
        way.upstream = body.raw if choice.target == body.model else body.with_model(choice.target)
        self._measure(way, body, fairness_id, headers)
        if self._meters:
            self._take(way, now)

    # -- stages --------------------------------------------------------------------------------------

    def _identified(
        self, way: Way, headers: Mapping[str, str], claims: Mapping[str, object] | None, now: float
    ) -> Identity:
        policy = self._identity
        assert policy is not None  # asked by `prepare`
        try:
            identity = policy.identify(headers, claims, now=now)
        except RequestRefusedError:
            raise
        except Exception as error:  # noqa: BLE001  a plug-in, whatever it raises
            self._failures.told(way, "identity", policy, error, self._failures.policy.identity)
            return _TRUSTING
        way.trail.append(("identity", f"tenant {identity.tenant!r}, flow {identity.fairness_id!r}"))
        return identity

    @staticmethod
    def _flow(headers: Mapping[str, str]) -> str:
        """Return whose flow it is where no identity says so: the header's, as the reference takes it."""
        return header(headers, FAIRNESS_ID) or DEFAULT_FLOW

    def _priority(self, way: Way, headers: Mapping[str, str]) -> int:
        """Return the objective's priority, at most what its sender may have. No objective, or an unknown one, is 0."""
        priority, name = 0, header(headers, OBJECTIVE)
        if name and self._models is not None:
            objective = self._models.objective(name)
            if objective is not None:
                priority = objective.priority
                way.trail.append(("objective", f"{name}, priority {priority}"))
        most = way.identity.max_priority
        if most is not None and priority > most:
            way.trail.append(("priority", f"{priority} asked for, {most} allowed"))
            return most
        return priority

    def _choose_model(self, way: Way, body: RequestBody, rng: np.random.Generator) -> None:
        if self._splits or (self._models is not None and self._models.divides(body.model)):
            way.key = conversation_key(body, way.headers)
        if self._models is None:
            way.choice = ModelChoice(body.model, body.model, "", body.model, "")
        else:
            way.choice = self._models.resolve(body.model, key=way.key, rng=rng)
        if not way.choice.target:
            raise BodyError("model", body.model, "the name of a model")

    def _guarded(self, way: Way, body: RequestBody, now: float) -> RequestBody:
        guards = self._guards
        assert guards is not None  # asked by `prepare`
        verdict = guards.check_request(body, tenant=way.identity.tenant, now=now)
        if isinstance(verdict, Block):
            raise GuardBlockedError(verdict.guard, verdict.rule, verdict.detail)
        if isinstance(verdict, Redact):
            way.trail.append(("guards", f"redacted by {', '.join(verdict.rules)}"))
            way.body = body = parse_body(body.with_texts(verdict.texts), body.kind, max_bytes=self._max_bytes)
        return body

    def _route(self, way: Way, path: str, headers: Mapping[str, str], rng: np.random.Generator) -> None:
        routes, choice = self._routes, way.choice
        if routes is None:
            way.lane = self._lane_of(choice)
            return
        seen = {**headers, MODEL_NAME: choice.target} if MODEL_NAME in routes.headers else headers
        way.match = match = routes.match(RouteQuery(path, headers.get("host", ""), "POST", seen))
        if match is None:
            raise UnroutedError(f"no route for model {choice.target!r} at {headers.get('host', '')}{path}")
        try:
            name = match.split.pick(way.key, rng)
        except RequestRefusedError:
            raise
        except Exception as error:  # noqa: BLE001  a plug-in, whatever it raises
            self._failures.told(way, "split", match.split, error, self._failures.policy.split)
            name = match.backends[0].pool
        lane = self._lanes.get(name)
        if lane is None:
            raise NoEndpointsError(f"route {match.route!r} names pool {name!r}, which is not there")
        way.lane = lane
        way.trail.append(("route", f"{match.route} rule {match.rule}: pool {name}"))

    def _lane_of(self, choice: ModelChoice) -> Lane:
        if self._alone is not None and not self._alone.serving.models:
            return self._alone
        spare: Lane | None = None
        for models, lane in self._by_model:
            if choice.base in models:
                return lane
            if not models and spare is None:
                spare = lane
        if spare is None:
            raise UnroutedError(f"no pool serves model {choice.base!r}")
        return spare

    def _measure(self, way: Way, body: RequestBody, fairness_id: str, headers: Mapping[str, str]) -> None:
        tokens, choice = body.tokens, way.choice
        if tokens is None:
            try:
                tokens = self._tokenizer.encode(body)
            except RequestRefusedError:
                raise
            except Exception as error:  # noqa: BLE001  a plug-in, whatever it raises
                self._failures.told(way, "tokenizer", self._tokenizer, error, self._failures.policy.tokenizer)
        count = None if tokens is None else len(tokens)
        way.input_tokens = count
        way.output_tokens = estimated_output_tokens(count or 0, self._output_ratio, client_cap=body.max_output_tokens)
        slo = objectives_of(headers)
        request = InferenceRequest(
            request_id=way.request_id,
            model=choice.target,
            adapter=choice.adapter,
            tokens=tokens,
            input_tokens=count,
            max_output_tokens=body.max_output_tokens,
            priority=way.priority,
            fairness_id=fairness_id,
            objective=header(headers, OBJECTIVE) or "",
            tenant=way.identity.tenant,
            cache_salt=body.cache_salt,
            headers=headers,
            slo_ttft=slo.ttft,
            slo_tpot=slo.tpot,
            media=body.media,
        )
        for source in self._sessions:
            session = source.session(request)
            if session:
                request = msgspec.structs.replace(request, session_id=session)
                break
        way.request = request

    def _take(self, way: Way, now: float) -> None:
        tokens = (way.input_tokens or 0) + way.output_tokens
        identity, model = way.identity, way.choice.target
        for meter in self._meters:
            try:
                way.receipts.append((meter, meter.reserve(identity, model, tokens, now=now)))
            except RequestRefusedError:
                self._failures.give_back(way, now)
                raise
            except Exception as error:  # noqa: BLE001  a plug-in, whatever it raises
                try:
                    self._failures.told(way, "meter", meter, error, self._failures.policy.meter)
                except StageFailedError:
                    self._failures.give_back(way, now)
                    raise


def conversation_key(body: RequestBody, headers: Mapping[str, str]) -> str:
    """Which conversation is it, for a sticky split? Equal for all its turns.

    The session's name where a header says one, else a hash of the model and of the prompt up to the end of the first turn of the user.
    """
    for name in _SESSION_HEADERS:
        said = headers.get(name)
        if said:
            return said
    return xxhash.xxh3_64_hexdigest(body.opening(), xxhash.xxh3_64_intdigest(body.model.encode()))


_SESSION_HEADERS: Final = ("x-session-id", "session-id", "x-claude-code-session-id", "x-session-affinity")
