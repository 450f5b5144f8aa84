"""Does verl's own factory make our load balancer, as a Ray actor, and does it keep verl's contract? (`make e2e`)"""

import inspect

import pytest

ray = pytest.importorskip("ray", reason="ray is not installed: `make e2e` installs it")
router = pytest.importorskip("verl.workers.rollout.router", reason="verl is not installed: `make e2e` installs it")

from inferencesched.adapters.verl import LoadBalancer
from tests.e2e.local_ray import cluster  # noqa: F401  a fixture

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("cluster")]


def test_every_method_of_the_protocol_is_there_with_its_arguments():
    for name, method in vars(router.RequestLoadBalancer).items():
        if name.startswith("_") or not callable(method):
            continue
        theirs, ours = inspect.signature(method), inspect.signature(getattr(LoadBalancer, name))
        named = [
            each for each in theirs.parameters if theirs.parameters[each].kind is not inspect.Parameter.VAR_KEYWORD
        ]
        assert [each for each in named if each not in ours.parameters] == [], name


def test_verls_factory_makes_it_of_a_file(tmp_path):
    file = tmp_path / "router.yaml"
    file.write_text("router_class: inferencesched.adapters.verl.LoadBalancer\nseed: 7\n")
    actor = router.get_router_handle({f"s{i}": f"handle {i}" for i in range(4)}, router_config_path=str(file))
    assert ray.get(actor.require_acquire_fields.remote()) == ["prompt_ids"]
    groups = {}
    for sample in range(8):  # GRPO: eight samples of each of eight prompts
        for prompt in range(8):
            ids = [prompt * 1000 + i for i in range(256)]
            name = f"p{prompt}-{sample}"
            server, handle = ray.get(actor.acquire_server.remote(request_id=name, prompt_ids=ids))
            assert handle == f"handle {server[1:]}"
            groups.setdefault(prompt, set()).add(server)
            ray.get(actor.release_server.remote(server_id=server, request_id=name))
    assert all(len(servers) == 1 for servers in groups.values()), groups
    assert ray.get(actor.get_total_inflight.remote()) == 0


def test_it_spreads_what_is_in_flight_and_follows_the_servers():
    actor = ray.remote(LoadBalancer).remote({}, {})
    with pytest.raises(Exception, match="No available servers"):
        ray.get(actor.acquire_server.remote(request_id="r"))
    ray.get(actor.add_servers.remote({"a": 1, "b": 2}))
    names = [ray.get(actor.acquire_server.remote(request_id=f"r{i}"))[0] for i in range(6)]
    assert sorted(names) == ["a"] * 3 + ["b"] * 3
    ray.get(actor.remove_servers.remote(["a"]))
    assert ray.get(actor.get_status.remote())["servers"] == {"b": 3}
    ray.get(actor.release_server.remote(server_id="a", request_id="r0"))  # late, of a server that is gone
    ray.get(actor.release_server.remote(server_id="b"))  # without its name: the oldest
    assert ray.get(actor.get_total_inflight.remote()) == 2
    assert ray.get(actor.clear_sticky_cache.remote())["server_loads"] == {"b": 2}
