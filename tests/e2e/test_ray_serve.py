"""Does Ray Serve's real router do what the adapter says, with real replicas? (`make e2e`)"""

import asyncio
import time

import pytest

ray = pytest.importorskip("ray", reason="ray[serve] is not installed: `make e2e` installs it")

from ray import serve
from ray.serve.config import RequestRouterConfig

from inferencesched.adapters.ray_serve import SchedulingRouter
from inferencesched.errors import ConfigError
from tests.e2e.local_ray import cluster  # noqa: F401  a fixture

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", autouse=True)
def serving(cluster):  # noqa: F811  the fixture
    """Ray Serve ends before its Ray does."""
    yield
    serve.shutdown()


def deployed(name, replicas=2, **more):
    """A deployment whose answer is the replica that gave it."""

    @serve.deployment(
        name=name,
        num_replicas=replicas,
        max_ongoing_requests=8,
        ray_actor_options={"num_cpus": 0.5},
        request_router_config=RequestRouterConfig(
            request_router_class="inferencesched.adapters.ray_serve.SchedulingRouter",
            request_routing_stats_period_s=0.2,
            request_router_kwargs={"seed": 7, **more},
        ),
    )
    class Model:
        def __init__(self):
            self.busy = 0

        async def __call__(self, request):
            self.busy += 1
            try:
                await asyncio.sleep(request.get("pause", 0.0))
                if request.get("fail"):
                    raise RuntimeError("as asked")
                return serve.get_replica_context().replica_id.unique_id
            finally:
                self.busy -= 1

        async def record_routing_stats(self):
            return {"num_requests_waiting": 0, "num_requests_running": self.busy, "kv_cache_usage_perc": 0.1}

    return serve.run(Model.bind(), name=name, route_prefix=f"/{name}")


def state(handle):
    """The router of a handle, in this process."""
    return handle._router._asyncio_router._request_router if hasattr(handle._router, "_asyncio_router") else None


def test_a_conversation_stays_and_others_spread():
    handle = deployed("prefixes")
    went = {}
    for turn in range(3):
        for user in range(6):
            text = f"I am user number {user}. " + "a long story " * 40 + "and on " * turn
            got = handle.remote({"messages": [{"role": "user", "content": text}]}).result()
            went.setdefault(user, []).append(got)
    assert all(len(set(replicas)) == 1 for replicas in went.values()), went
    assert sorted(
        [replicas[0] for replicas in went.values()].count(name) for name in {r[0] for r in went.values()}
    ) == [3, 3]


def test_the_busy_one_is_left_alone_and_all_is_given_back():
    handle = deployed("busy")
    slow = [handle.remote({"prompt": f"{i} is slow", "pause": 0.5}) for i in range(6)]
    names = [answer.result() for answer in slow]
    assert sorted(names.count(name) for name in set(names)) == [3, 3]
    failing = [handle.remote({"prompt": f"{i} fails", "fail": True}) for i in range(4)]
    for answer in failing:
        with pytest.raises(Exception, match="as asked"):
            answer.result()
    for _ in range(100):
        router = state(handle)
        if router is None or not router.balancer.pool.ledger().inflight_requests:
            break
        time.sleep(0.05)
    assert router is not None
    assert router.balancer.pool.ledger().inflight_requests == 0
    router.balancer.pool.check()


def test_replicas_come_and_go():
    handle = deployed("scaled", replicas=1)
    assert handle.remote({"prompt": "hello"}).result()
    handle = deployed("scaled", replicas=3)
    seen = {handle.remote({"prompt": f"{i} asks something else"}).result() for i in range(12)}
    assert len(seen) == 3


def test_a_word_that_is_none_is_an_error_with_its_place():
    router = SchedulingRouter.__new__(SchedulingRouter)
    with pytest.raises(
        ConfigError, match=r"request_router_kwargs\.block_size: got 16, allowed: one of scheduler, seed"
    ):
        router.initialize_state(block_size=16)
