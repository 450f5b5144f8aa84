"""A gateway from one YAML file."""

import asyncio

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
