"""Which deployment takes this call? LiteLLM's router, deciding by this library.

::

    import litellm
    from inferencesched.adapters.litellm import SchedulingCallback
    litellm.callbacks.append(SchedulingCallback())

LiteLLM asks twice. `async_filter_deployments` gets those that are not cooling down, and answers with the one that is chosen, where a
place is held. The hook before each attempt takes it; that after it, or the end of its stream, gives it back. Retries and fallbacks ask anew.

LiteLLM knows nothing of its servers' load: what is in flight from here is known, and what was sent where. For their queues and caches let
a `Scraper` read `SchedulingCallback.balancer`'s pool, with `metrics_url`. Contract: LiteLLM 1.100, ``integrations/custom_logger.py``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from litellm.integrations.custom_logger import CustomLogger

from inferencesched.adapters.balancing import Balancer, InFlight, request_of
from inferencesched.errors import RequestRefusedError

#: Seconds after which a call that nobody has ended is gone: LiteLLM tells of no client that hangs up.
TTL: Final = 900.0
_CHAT_SUFFIXES: Final = ("/v1", "/v1/")


def metrics_url(api_base: str) -> str:
    """Where is the metrics page of the server behind an ``api_base``?

    >>> metrics_url("http://10.0.0.1:8000/v1")
    'http://10.0.0.1:8000/metrics'
    """
    for suffix in _CHAT_SUFFIXES:
        api_base = api_base.removesuffix(suffix)
    return api_base.rstrip("/") + "/metrics"


class SchedulingCallback(CustomLogger):  # type: ignore[misc, unused-ignore]  # Any, where LiteLLM is not installed
    """Which deployment takes this call? A callback of LiteLLM's.

    Parameters
    ----------
    balancer: pool, scheduler, clock and chance; without it one with `balancing.STANDARD`. Endpoints are LiteLLM's ids of deployments,
        their addresses the ``api_base``.

    A refusal of the scheduler's (every deployment filtered out) leaves the choice to LiteLLM's own strategy: a call is not lost because
    of us, and `refused` counts it. Only LiteLLM's asynchronous calls come by here; its synchronous ones know no such hook.
    """

    def __init__(self, balancer: Balancer | None = None) -> None:
        super().__init__()
        self.balancer = Balancer(ttl=TTL) if balancer is None else balancer
        self.refused = 0
        self._inflight = InFlight()

    def __len__(self) -> int:
        """How many calls are at a deployment?"""
        return self.balancer.pool.ledger().inflight_requests

    def keep(self, ids: Iterable[str]) -> None:
        """Let those go that are not named: deployments that were taken off the router. One that is asked for again comes back."""
        kept = set(ids)
        self.balancer.follow({name: address for name, address in self.balancer.servers.items() if name in kept})
        self._inflight.keep(kept)

    # -- what LiteLLM calls --------------------------------------------------------------------------

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Any],
        messages: list[Any] | None,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: object = None,
    ) -> list[Any]:
        """Return the chosen deployment alone; all of them where there is nothing to choose, or nobody was found."""
        named = {_id(each): each for each in healthy_deployments}
        if len(named) < 2:
            return healthy_deployments
        here = self.balancer.servers
        wanted = {name: _base(each) or name for name, each in named.items()}
        if not wanted.items() <= here.items():
            self.balancer.follow({**here, **wanted})
        said = request_kwargs or {}
        try:
            result = self.balancer.choose(self._request(model, messages, said), among=named)
            if "litellm_call_id" in said:
                self.balancer.hold(_call_of(said), result)
        except RequestRefusedError:
            self.refused += 1
            return healthy_deployments
        return [named[result.target.endpoint]]

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: object) -> dict[str, Any] | None:
        """Book an attempt where it goes."""
        name = _deployment_of(kwargs)
        if name in self.balancer.pool.names:
            try:
                reservation = self.balancer.take(_call_of(kwargs), name)
                if reservation is None:
                    request = self._request(_group_of(kwargs), kwargs.get("messages"), kwargs)
                    reservation = self.balancer.book(self.balancer.choose(request, among=(name,)))
            except RequestRefusedError:  # a filter that would not have it: it goes all the same
                self.refused += 1
                return None
            self._inflight.add(_call_of(kwargs), reservation)
        return None

    async def async_post_call_success_deployment_hook(
        self, request_data: dict[str, Any], response: Any, call_type: object
    ) -> Any:
        """Give back an attempt that is answered; a stream's is, when it has ended."""
        self._end(request_data)
        return None

    async def async_post_call_failure_deployment_hook(
        self,
        request_data: Mapping[str, object],
        exception: Exception,
        call_type: object,
        fallback_depth: int | None = None,
    ) -> None:
        """Give back an attempt that failed."""
        self._end(request_data, "error")

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: object, start_time: object, end_time: object
    ) -> None:
        """Give back what a stream has held to its end."""
        self._end(kwargs)

    async def async_log_failure_event(
        self, kwargs: dict[str, Any], response_obj: object, start_time: object, end_time: object
    ) -> None:
        """Give back what a stream has held that broke off."""
        self._end(kwargs, "error")

    # -- inside --------------------------------------------------------------------------------------

    def _request(self, model: str, messages: Sequence[Any] | None, kwargs: Mapping[str, Any]) -> Any:
        prompt = kwargs.get("prompt", kwargs.get("input"))
        most = kwargs.get("max_completion_tokens", kwargs.get("max_tokens"))
        return request_of(
            _call_of(kwargs),
            model=model,
            messages=messages,
            prompt=None if messages is not None else prompt,
            max_output_tokens=most if type(most) is int and most >= 0 else None,
        )

    def _end(self, kwargs: Mapping[str, object], failure: str = "") -> None:
        reservation = self._inflight.pop(_deployment_of(kwargs), _call_of(kwargs))
        if reservation is not None:  # else given back already, or never booked here
            self.balancer.end(reservation, failure=failure)


def _id(deployment: Mapping[str, Any]) -> str:
    return str((deployment.get("model_info") or {}).get("id", ""))


def _base(deployment: Mapping[str, Any]) -> str:
    return str((deployment.get("litellm_params") or {}).get("api_base") or "")


def _call_of(kwargs: Mapping[str, Any]) -> str:
    return str(kwargs.get("litellm_call_id") or "call")


def _places(kwargs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return where LiteLLM may have put a call's metadata: at the top, under ``litellm_params``, by two names."""
    params = kwargs.get("litellm_params")
    levels = [kwargs, params] if isinstance(params, Mapping) else [kwargs]
    found = [level.get(name) for level in levels for name in ("metadata", "litellm_metadata")]
    return [*levels, *(each for each in found if isinstance(each, Mapping))]


def _deployment_of(kwargs: Mapping[str, Any]) -> str:
    for place in _places(kwargs):
        info = place.get("model_info")
        if isinstance(info, Mapping) and info.get("id"):
            return str(info["id"])
    return ""


def _group_of(kwargs: Mapping[str, Any]) -> str:
    for place in _places(kwargs):
        if place.get("model_group"):
            return str(place["model_group"])
    return str(kwargs.get("model") or "")
