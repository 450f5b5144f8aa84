"""A gateway from one YAML file."""

import asyncio
import shutil

import httpx
import msgspec
import pytest

import inferencesched as isched
from inferencesched.adapters.asgi import GatewayPolicy
from inferencesched.adapters.serve import Patience, Retrying, Scraping, gateway_of, read_gateway
from inferencesched.adapters.vllm.scrape import ScrapePolicy
from inferencesched.cli import main
from inferencesched.errors import ConfigError
from inferencesched.lifecycle import RetryPolicy
from inferencesched.signals import HEALTH
from tests.director_parts import chat, director, fleet, rng, scheduler
from tests.servers import ModelServer, serving
from tests.test_redis import redis

ONE = """
pools:
- name: llama
  {config}
  endpoints:
  - {{name: vllm-0, address: "{address}"}}
scrape: {{interval: 0.05, timeout: 1.0}}
patience: {{drain: 1.0}}
"""
SCHEDULER = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- {type: queue-scorer}
- {type: prefix-cache-scorer}
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: queue-scorer}
  - {pluginRef: prefix-cache-scorer, weight: 3}
"""


@pytest.fixture(name="anyio_backend", scope="module")
def _anyio_backend():
    return "asyncio"


def written(folder, text, name="gateway.yaml"):
    """Write a file; return where."""
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.anyio
@pytest.mark.parametrize("config", ["", "config: scheduler.yaml"])
async def test_a_file_becomes_a_gateway_that_answers(tmp_path, config):
    written(tmp_path, SCHEDULER, "scheduler.yaml")
    async with serving(ModelServer()) as server, httpx.AsyncClient() as client:
        path = written(tmp_path, ONE.format(address=server, config=config))
        async with serving(gateway_of(read_gateway(path), tmp_path)) as address:
            for _ in range(100):
                page = (await client.get(f"http://{address}/metrics")).text
                if "average_queue_size" in page:
                    break
                await asyncio.sleep(0.02)
            assert 'llm_d_epp_average_queue_size{name="llama"} 2.0' in page
            answer = await client.post(f"http://{address}/v1/chat/completions", content=chat(stream=True))
            assert answer.status_code == 200
            assert answer.text.endswith("data: [DONE]\n\n")
            listed = (await client.get(f"http://{address}/v1/models")).json()["data"]
            assert [each["id"] for each in listed] == ["llama"]


GOOD = ONE.format(address="127.0.0.1:1", config="")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("name: vllm-0", "nam: vllm-0", "nam"),
        ('"127.0.0.1:1"', '"http://x:1"', "address"),
        ("scrape: {", "scrap: {", "scrap"),
        ("interval: 0.05", "interval: soon", "interval"),
        ("interval: 0.05", "interval: -1", "interval"),
        ("pools:\n", "pools: []\nx:\n", "x"),
        ("  endpoints:\n", "  endpoints:\n  - {name: vllm-0, address: 'a:1'}\n", "each name once"),
        ("name: llama\n", "name: llama\n  config: nowhere.yaml\n", "nowhere.yaml"),
        ("name: llama\n", "name: llama\n  config: bad.yaml\n", "no-such-scorer"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, capsys, before, after, said):
    written(tmp_path, SCHEDULER.replace("queue-scorer", "no-such-scorer"), "bad.yaml")
    path = written(tmp_path, GOOD.replace(before, after))
    with pytest.raises(SystemExit) as end:
        main.main(["serve", "--config", str(path), "--check"], prog_name="inferencesched")
    assert end.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert said in output.err


def test_a_good_file_is_counted(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main.main(["serve", "--config", str(written(tmp_path, GOOD)), "--check"], prog_name="inferencesched")
    assert not end.value.code
    assert "1 pools, 1 endpoints" in capsys.readouterr().out


def test_defaults_of_the_file_are_those_of_the_policies():
    assert ScrapePolicy(*msgspec.structs.astuple(Scraping())) == ScrapePolicy()
    patience, policy = Patience(), GatewayPolicy()
    for name in ("first_token", "between", "max_body"):
        assert getattr(patience, name) == getattr(policy, name)
    assert (Retrying().attempts, Retrying().budget) == (RetryPolicy().attempts, RetryPolicy().budget)


def test_mistakes_have_their_line(tmp_path):
    path = written(tmp_path, GOOD.replace("timeout: 1.0", "timeout: long"))
    with pytest.raises(ConfigError, match=r"gateway\.yaml:7: \$\.scrape\.timeout"):
        read_gateway(path)


@pytest.mark.anyio
async def test_a_dead_server_is_left_alone_after_a_few_failures(tmp_path):
    async with serving(ModelServer()) as server, httpx.AsyncClient() as client:
        said = ONE.format(address=server, config="").replace(
            "scrape:", '  - {name: dead, address: "127.0.0.1:9"}\nscrape:'
        )
        async with serving(gateway_of(read_gateway(written(tmp_path, said)), tmp_path)) as address:
            for i in range(40):
                answer = await client.post(f"http://{address}/v1/chat/completions", content=chat(f"{i} hello"))
                assert answer.status_code == 200
            page = (await client.get(f"http://{address}/metrics")).text
    tried = [line for line in page.splitlines() if "scheduler_attempts_total{" in line and "dead" in line]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in tried) <= 4


def test_a_client_that_goes_is_not_its_server_s_fault():
    pool = fleet("a", "b")
    producer = isched.OutlierProducer(isched.OutlierPolicy(consecutive_failures=1))
    decider = director(pool, scheduler=scheduler(producer))
    for end in ("cancel", "block"):
        decision = decider.decide(chat(), {}, now=1.0, rng=rng())
        getattr(decision.life, end)(now=1.0)
    cycle = isched.CycleState(2.0, rng(), 0)
    columns = producer.produce(isched.InferenceRequest(request_id="r"), pool.snapshot(), cycle).columns
    assert columns[HEALTH].tolist() == [1.0, 1.0]


PRECISE = """
apiVersion: inferencesched/v1
kind: Scheduler
producers:
- {type: precise-prefix-cache-producer, parameters: {tokenProcessorConfig: {blockSizeTokens: 16}}}
profiles: {default: {scorers: [prefix-cache-scorer]}}
"""
MORE = """
pools:
- name: llama
  models: [llama]
  adapters: [english-bot]
  endpoints:
  - {name: vllm-0, address: "127.0.0.1:1"}
"""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("tokenizer: {file: nowhere.json}\n", r"\$\.tokenizer\.file: got .*nowhere.json"),
        ("tokenizer: {file: x, template: chatlm}\n", "tokenizer"),
        ("replication: {origin: a, redis: 'http://127.0.0.1:1'}\n", "redis"),
        ("replication: {redis: 'redis://127.0.0.1:1'}\n", "origin"),
        ("replication: {origin: a, redis: 'redis://127.0.0.1:1', interval: 0.0}\n", "interval"),
    ],
)
def test_mistakes_in_what_is_beside_the_pools_are_said(tmp_path, more, said):
    path = written(tmp_path, MORE + more)
    with pytest.raises(isched.InvalidInputError, match=said):
        gateway_of(read_gateway(path), tmp_path)


def test_kv_events_need_somebody_who_takes_them(tmp_path):
    written(tmp_path, PRECISE, "precise.yaml")
    spoken = MORE.replace('127.0.0.1:1"', '127.0.0.1:1", kv_events: {endpoint: "tcp://127.0.0.1:5557"}')
    with pytest.raises(ConfigError, match=r"endpoints\[0\]\.kv_events: .*precise-prefix-cache-producer"):
        gateway_of(read_gateway(written(tmp_path, spoken)), tmp_path)
    taken = spoken.replace("  adapters:", "  config: precise.yaml\n  adapters:")
    assert gateway_of(read_gateway(written(tmp_path, taken)), tmp_path) is not None
    with pytest.raises(ConfigError, match="kv_events"):
        read_gateway(written(tmp_path, taken.replace("tcp://127.0.0.1:5557", "127.0.0.1:5557")))


@pytest.mark.anyio
async def test_adapters_are_listed_and_served_with_their_own_name(tmp_path):
    server = ModelServer()
    async with serving(server) as address, httpx.AsyncClient() as client:
        path = written(tmp_path, MORE.replace("127.0.0.1:1", address))
        async with serving(gateway_of(read_gateway(path), tmp_path), lifespan="on") as gateway:
            listed = (await client.get(f"http://{gateway}/v1/models")).json()["data"]
            assert [each["id"] for each in listed] == ["english-bot", "llama"]
            answer = await client.post(f"http://{gateway}/v1/chat/completions", content=chat(model="english-bot"))
            assert answer.status_code == 200
    assert server.seen[0][1]["model"] == "english-bot"


@pytest.mark.anyio
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server here")
async def test_two_files_become_two_gateways_that_know_of_each_other(tmp_path):
    servers = [ModelServer() for _ in range(3)]
    async with redis() as store, serving(servers[0]) as a, serving(servers[1]) as b, serving(servers[2]) as c:
        endpoints = "".join(f'\n  - {{name: ep-{i}, address: "{each}"}}' for i, each in enumerate((a, b, c)))
        text = f"pools:\n- name: llama\n  endpoints:{endpoints}\nscrape: {{interval: 0.05}}\n"
        files = [
            written(tmp_path, f"{text}replication: {{origin: {name}, redis: 'redis://127.0.0.1:{store.port}/0', interval: 0.005}}\n", f"{name}.yaml")
            for name in "xy"
        ]  # fmt: skip
        apps = [gateway_of(read_gateway(file), tmp_path) for file in files]
        async with (
            serving(apps[0], lifespan="on") as x,
            serving(apps[1], lifespan="on") as y,
            httpx.AsyncClient() as client,
        ):
            await asyncio.sleep(0.3)
            for turn in range(6):  # a conversation that meets the one gateway and the other
                said = chat("a long story of somebody " * 80)
                answer = await client.post(f"http://{(x, y)[turn % 2]}/v1/chat/completions", content=said)
                assert answer.status_code == 200
                await asyncio.sleep(0.1)
            await store.kill()
            for turn in range(4):
                answer = await client.post(f"http://{(x, y)[turn % 2]}/v1/chat/completions", content=said)
                assert answer.status_code == 200  # alone, each of them
    assert sorted(len(server.seen) for server in servers) == [0, 0, 10]
