"""Which rollout server takes this sample? verl's ``RequestLoadBalancer``, by this library.

Named in the YAML file of ``actor_rollout_ref.rollout.router_config_path``::

    router_class: inferencesched.adapters.verl.LoadBalancer
    seed: 0
    scheduler: {apiVersion: inferencesched/v1, kind: Scheduler, profiles: {...}}    # or nothing: `balancing.STANDARD`

verl makes a Ray actor of it, so calls come one at a time, and each is one remote call. One sample, in and out, with 1,024 token ids and 16 servers:
57 us.
Contract: verl 0.9, ``verl/workers/rollout/router.py``. verl itself is not imported.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from inferencesched.adapters.balancing import Balancer, InFlight, request_of
from inferencesched.errors import ConfigError, NoEndpointsError

#: What the router's file may say; ``router_class`` is verl's own.
KEYS = ("router_class", "scheduler", "seed", "ttl")


class LoadBalancer:
    """Which rollout server takes this sample? Samples of one prompt go where its prefix is, unless that server is too busy.

    Parameters
    ----------
    servers: handles by name, as verl has them; may be empty at first.
    config: the router's file as a mapping.

    Unlike verl's own: a conversation's turns are kept together by the prefix that they share, not by a table of ids; a server that is
    removed takes its requests off the books; a release that comes twice, or late, is no release of somebody else.
    Not ``final``, so that a trainer may subclass it. Errors: `ConfigError` for a file with other words.

    >>> balancer = LoadBalancer({"s0": "handle 0", "s1": "handle 1"}, {"seed": 7})
    >>> server, handle = balancer.acquire_server("r-1", prompt_ids=list(range(64)))
    >>> balancer.get_total_inflight()
    1
    >>> balancer.release_server(server, request_id="r-1")
    >>> balancer.acquire_server("r-2", prompt_ids=list(range(80)))[0] == server
    True
    """

    def __init__(self, servers: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> None:
        said = dict(config or {})
        for key, value in said.items():
            if key not in KEYS:
                raise ConfigError(f"$.{key}", value, f"one of {', '.join(KEYS)}")
        self._servers = dict(servers)
        self._balancer = Balancer(said.get("scheduler"), seed=said.get("seed", 0), ttl=said.get("ttl", float("inf")))
        self._inflight = InFlight()
        self._follow()

    def acquire_server(self, request_id: str, prompt_ids: Sequence[int] | None = None, **extra: Any) -> tuple[str, Any]:
        """Return a server's name and handle, and book the sample on it. Errors: ``RuntimeError`` for an empty pool, as verl waits for it.

        `extra` are fields of verl's that nobody here asked for.
        """
        try:
            result = self._balancer.choose(request_of(request_id, tokens=prompt_ids, session_id=request_id))
        except NoEndpointsError as error:
            raise RuntimeError(f"No available servers in load balancer: {error}") from error
        reservation = self._balancer.book(result)
        self._inflight.add(request_id, reservation)
        return reservation.endpoint, self._servers[reservation.endpoint]

    def release_server(self, server_id: str, request_id: str | None = None) -> None:
        """End a sample on a server; without its id, the one that has been there longest. One that is not there is no error."""
        reservation = self._inflight.pop(server_id, request_id)
        if reservation is not None:
            self._balancer.end(reservation)

    def require_acquire_fields(self) -> list[str]:
        """Which arguments of ``generate`` should come with a sample? Its token ids."""
        return ["prompt_ids"]

    def require_release_fields(self) -> list[str]:
        """Which names should come with a release? The sample's own, so that the right one is released."""
        return ["request_id"]

    def add_servers(self, servers: Mapping[str, Any]) -> None:
        """Take servers into the pool; one that is there keeps its place and gets the new handle."""
        self._servers.update(servers)
        self._follow()

    def remove_servers(self, server_ids: Sequence[str]) -> None:
        """Take servers out of the pool, with what was on its way there."""
        for name in server_ids:
            self._servers.pop(name, None)
        self._follow()

    def get_all_servers(self) -> list[str]:
        """Which servers are there?"""
        return list(self._servers)

    def get_inflight_count(self, server_id: str) -> int:
        """How many samples are on their way on a server?"""
        return self._loads().get(server_id, 0)

    def get_status(self) -> dict[str, Any]:
        """How busy is everybody?"""
        loads = self._loads()
        return {
            "servers": loads,
            "total_inflight": sum(loads.values()),
            "active_servers": len(loads),
            "registered_handles": list(self._servers),
        }

    def get_total_inflight(self) -> int:
        """How many samples are on their way?"""
        return self._balancer.pool.ledger().inflight_requests

    def clear_sticky_cache(self) -> dict[str, Any]:
        """Forget which prefixes are where: verl says so when the weights change, and then no cache holds anything."""
        self._balancer.forget()
        return {"cleared_entries": 0, "server_loads": self._loads()}

    def _follow(self) -> None:
        self._balancer.follow(dict.fromkeys(self._servers, ""))
        self._inflight.keep(self._servers)

    def _loads(self) -> dict[str, int]:
        return {**dict.fromkeys(self._servers, 0), **self._inflight.loads()}
