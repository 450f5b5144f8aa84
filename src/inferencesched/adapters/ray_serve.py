"""Which replica takes this request? Ray Serve's ``RequestRouter``, deciding by this library.

::

    from ray.serve.config import RequestRouterConfig
    from inferencesched.adapters.ray_serve import SchedulingRouter

    @serve.deployment(request_router_config=RequestRouterConfig(
        request_router_class="inferencesched.adapters.ray_serve.SchedulingRouter",
        request_router_kwargs={"seed": 7},          # and "scheduler": the library's configuration, as plain data
        request_routing_stats_period_s=1.0,         # Ray's own default, 10 s, is old news
    ))
    class Model: ...

Ray asks `choose_replicas` from many tasks at once, and tells only later where a request went: by then all of them would have chosen the
same replica. So choosing holds a place, one a request however often it is asked for; `on_request_routed` makes it the request's, or moves
it; what Ray never speaks of again is let go after some seconds; `on_request_completed` gives it back. What a replica's ``record_routing_stats`` returns is taken for its metrics: `STATS` says under which names.
Contract: Ray 2.60, ``ray.serve.request_router``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from inferencesched.adapters.balancing import Balancer, InFlight, request_of
from inferencesched.endpoints import (
    KV_BLOCK_SIZE,
    KV_BLOCKS,
    KV_CACHE_USAGE,
    RUNNING_REQUESTS,
    WAITING_QUEUE_SIZE,
    Signal,
)
from inferencesched.errors import ConfigError, RequestRefusedError

#: What ``record_routing_stats`` of a deployment may return: a name -> the signal it is.
STATS: Final[Mapping[str, Signal]] = {
    "num_requests_waiting": WAITING_QUEUE_SIZE,
    "num_requests_running": RUNNING_REQUESTS,
    "kv_cache_usage_perc": KV_CACHE_USAGE,
    "num_gpu_blocks": KV_BLOCKS,
    "block_size": KV_BLOCK_SIZE,
}
#: What ``request_router_kwargs`` may say.
KEYS: Final = ("scheduler", "seed", "ttl", "fallbacks")
#: Seconds after which a request that Ray has not called completed is gone.
TTL: Final = 3600.0


class SchedulingRouter(RequestRouter):  # type: ignore[misc, unused-ignore]  # Any, where Ray is not installed
    """Which replica takes this request? The best first, then `fallbacks` more, for when it refuses.

    ``request_router_kwargs``: ``scheduler`` (a configuration of the library's; without it `balancing.STANDARD`), ``seed``, ``ttl`` (seconds
    until a request that nobody completed is gone), ``fallbacks``. Errors: `ConfigError` for other words, when the deployment starts.

    The prompt is looked for where Ray Serve LLM has it: token ids in ``kwargs["request_token_ids"]``, else ``messages`` or ``prompt`` of the
    first argument, an object or a mapping; else the request has an unknown length and is spread by load alone.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Read the deployment's ``request_router_kwargs``."""
        for key, value in kwargs.items():
            if key not in KEYS:
                raise ConfigError(f"$.request_router_kwargs.{key}", value, f"one of {', '.join(KEYS)}")
        self.balancer = Balancer(kwargs.get("scheduler"), seed=kwargs.get("seed", 0), ttl=kwargs.get("ttl", TTL))
        self._fallbacks = int(kwargs.get("fallbacks", 2))
        self._routed = InFlight()
        self._told: dict[str, Mapping[str, Any]] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: "PendingRequest | None" = None,
    ) -> list[list[RunningReplica]]:
        """Return ranks of one replica each, the best first; a full replica is not in them, unless all are full."""
        candidates = self.select_available_replicas(candidate_replicas) or list(candidate_replicas)
        if not candidates:
            return []
        self._observe(candidates)
        named = {each.replica_id.unique_id: each for each in candidates}
        request = request_of("unknown") if pending_request is None else self._request(pending_request)
        if pending_request is not None:
            self.balancer.release(pending_request.metadata.internal_request_id)
        ranks: list[list[RunningReplica]] = []
        left = dict(named)
        while left and len(ranks) <= self._fallbacks:
            try:
                chosen = self.balancer.choose(request, among=left)
            except RequestRefusedError:
                break
            ranks.append([left.pop(chosen.target.endpoint)])
            if pending_request is not None and len(ranks) == 1:
                self.balancer.hold(pending_request.metadata.internal_request_id, chosen)
        # Ray asks again until somebody is found: it must not spin on an empty answer.
        return ranks or [candidates]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        """Make the held place the request's, or book it where it went instead."""
        name, internal = replica_id.unique_id, pending_request.metadata.internal_request_id
        held = self.balancer.take(internal, name)
        if held is None:
            if name not in self.balancer.pool.names:
                return
            try:
                held = self.balancer.book(self.balancer.choose(self._request(pending_request), among=(name,)))
            except RequestRefusedError:
                return  # a filter that would not have it: it went all the same
        before = self._routed.pop(name, internal)
        if before is not None:  # routed there again: it was refused the first time
            self.balancer.end(before, failure="cancelled")
        self._routed.add(internal, held)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Give a request back."""
        reservation = self._routed.pop(replica_id.unique_id, internal_request_id)
        if reservation is not None:
            self.balancer.end(reservation)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget a replica, with what was on its way there."""
        super().on_replica_actor_died(replica_id)
        self._keep(each for each in self.balancer.pool.names if each != replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Follow the deployment's replicas."""
        super().update_replicas(replicas)
        self._keep(each.replica_id.unique_id for each in replicas)

    # -- inside --------------------------------------------------------------------------------------

    def _keep(self, names: Any) -> None:
        kept = dict.fromkeys(names, "")
        self.balancer.follow(kept)
        self._routed.keep(kept)
        self._told = {name: each for name, each in self._told.items() if name in kept}

    def _observe(self, replicas: Sequence[RunningReplica]) -> None:
        """Take what the replicas have said of themselves since the last time."""
        unseen = [
            each.replica_id.unique_id for each in replicas if each.replica_id.unique_id not in self.balancer.pool.names
        ]
        if unseen:
            self.balancer.follow(dict.fromkeys((*self.balancer.pool.names, *unseen), ""))
        for each in replicas:
            name, stats = each.replica_id.unique_id, each.routing_stats
            if not stats or self._told.get(name) is stats:
                continue
            self._told[name] = stats
            columns = {
                signal: float(stats[key])
                for key, signal in STATS.items()
                if isinstance(stats.get(key), (int, float)) and stats[key] >= 0
            }
            if columns:
                self.balancer.pool.observe(name, columns, now=self.balancer.now())

    def _request(self, pending: PendingRequest) -> Any:
        meta, said = pending.metadata, pending.args[0] if pending.args else None
        tokens = pending.kwargs.get("request_token_ids")
        return request_of(
            meta.request_id or meta.internal_request_id,
            model=str(_field(said, "model") or ""),
            tokens=tokens,
            messages=None if tokens is not None else _field(said, "messages"),
            prompt=None if tokens is not None else _field(said, "prompt"),
            session_id=str(getattr(meta, "session_id", "") or ""),
        )


def _field(said: object, name: str) -> Any:
    """Return a field of a request that is a mapping or a model of Ray Serve LLM's; None where it has none."""
    return said.get(name) if isinstance(said, Mapping) else getattr(said, name, None)
