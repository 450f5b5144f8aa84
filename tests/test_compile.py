"""How kernels are compiled, and that `warmup` leaves nothing to compile."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np

from inferencesched._kernels import _compile
from inferencesched._kernels._compile import KERNELS, kernel

SOURCE = '''
def doubled(x):
    """Twice as much."""
    return x + x
'''


def test_without_a_place_for_its_cache_a_kernel_is_compiled_in_memory(monkeypatch):
    """A function that is in no file: numba finds no place for its cache, as in a read-only install."""
    monkeypatch.setattr(_compile, "KERNELS", {})
    names = {"__name__": "nowhere"}
    exec(compile(SOURCE, "<nowhere>", "exec"), names)
    doubled = kernel(names["doubled"])
    assert np.array_equal(doubled(np.array([1.0, 2.0])), [2.0, 4.0])
    assert list(_compile.KERNELS) == ["nowhere.doubled"]


def test_an_edit_in_a_callee_s_module_is_seen_by_the_disk_cache(tmp_path):
    """numba alone would go on with the old one: its cache knows the caller's file only."""
    cellar = tmp_path / "cellar"
    cellar.mkdir()
    (cellar / "__init__.py").touch()
    shutil.copy(_compile.__file__, cellar / "_compile.py")
    (cellar / "caller.py").write_text(
        "from cellar._compile import kernel\nfrom cellar.callee import step\n\n\n"
        "@kernel\ndef twice(x):\n    return step(step(x))\n"
    )
    call = "from cellar.caller import twice as k; print(k(1), sum(k.stats.cache_hits.values()))"

    def run(body):
        (cellar / "callee.py").write_text(
            f"from cellar._compile import kernel\n\n\n@kernel\ndef step(x):\n    return {body}\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", call], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert run("x + 1") == ["3", "0"]
    assert run("x + 1") == ["3", "1"]
    assert run("x + 5") == ["11", "0"]


def test_every_kernel_has_the_options_of_the_house():
    assert len(KERNELS) >= 10
    for name, compiled in KERNELS.items():
        options = {key: getattr(value, "name", value) for key, value in compiled.targetoptions.items()}
        assert options["nogil"] is True and options["boundscheck"] is False, name
        assert not options["fastmath"] and options["error_model"] == "numpy", name
        assert compiled.py_func.__doc__ or compiled.py_func.__name__.startswith("_"), name


#: A gateway's day: every scorer, picker and policy of the library, requests with and without tokens.
DAY = """
import json, sys
import numpy as np
import inferencesched as isched
from inferencesched._kernels._compile import KERNELS

def compiled():
    return {name: len(k.signatures) for name, k in KERNELS.items() if "serving" not in name}

isched.warmup()
before = compiled()
rng = np.random.default_rng(0)
pool = isched.InferencePool()
for name in "abcdef":
    pool.join(name, labels={"zone": name})
pool.observe_all({isched.WAITING_QUEUE_SIZE: np.arange(6), isched.KV_CACHE_USAGE: np.arange(6.0) / 9}, now=0.0)
pool.observe("a", {isched.RUNNING_REQUESTS: 3}, now=1.0, adapters=isched.Adapters(frozenset("x"), capacity=2))
scorers = (
    isched.ActiveRequestScorer(), isched.KvCacheUtilizationScorer(), isched.LoraAffinityScorer(),
    isched.PrefixCacheScorer(), isched.PrefixCacheScorer(0.5), isched.QueueScorer(), isched.RunningRequestsScorer(),
    isched.TokenLoadScorer(), isched.CapacityScaledScorer(), isched.LoadSecondsScorer(),
    isched.Lexicographic((isched.QueueScorer(), isched.RendezvousScorer(isched.RequestKey("adapter")))),
)
pickers = (
    isched.MaxScorePicker(), isched.MaxScorePicker(3), isched.PowerOfTwoPicker(), isched.RandomPicker(),
    isched.RoundRobinPicker(), isched.WeightedRandomPicker(2), isched.EpsilonGreedyPicker(0.5), isched.SoftmaxPicker(),
)
busy = isched.UtilizationFilter(((isched.WAITING_QUEUE_SIZE, 3.0),))
filters = ((), (busy, isched.Prefer(isched.AtLeast(isched.QueueScorer(), 0.5)), isched.RendezvousFilter(replicas=2)))
requests = [
    isched.InferenceRequest(request_id="tokens", tokens=np.arange(n, dtype=np.uint32), adapter="x", cache_salt=salt)
    for n in (0, 7, 64, 700) for salt in ("", "salt")
] + [
    isched.InferenceRequest(request_id="length", input_tokens=500),
    isched.InferenceRequest(request_id="hashes", block_hashes=np.arange(1, 9, dtype=np.uint64)),
]
for assume in ("worst", "mean", "exclude", "trust"):
    for picker in pickers:
        for kept in filters:
            producer = isched.ApproximatePrefixProducer(block_size=16, capacity=64)
            profile = isched.SchedulingProfile(picker, tuple(isched.WeightedScorer(s) for s in scorers), kept)
            scheduler = isched.Scheduler(profile, producers=(producer,), stale=isched.StalePolicy(2.0, assume))
            for request in requests:
                isched.explain(scheduler, request, pool.snapshot(), now=2.5, rng=rng)
                scheduler.schedule_and_reserve(request, pool, now=2.5, rng=rng, exclude={"b"}).complete(now=3.0)
            scheduler.schedule_many(requests, pool, now=2.5, rng=rng)
            scheduler.assign(requests, pool.snapshot(), now=2.5, rng=rng)
after = compiled()
json.dump({name: [before.get(name, 0), count] for name, count in after.items() if count != before.get(name, 0)}, sys.stdout)
"""


def test_after_warmup_nothing_is_left_to_compile():
    done = subprocess.run([sys.executable, "-c", DAY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}


ALLOCATIONS = """
import json, os
import numpy as np
import inferencesched as isched
from numba.core.runtime import rtsys
pool = isched.InferencePool()
for i in range(100):
    pool.join(f"ep-{i}")
    pool.observe(f"ep-{i}", {isched.WAITING_QUEUE_SIZE: i % 7, isched.KV_CACHE_USAGE: 0.01 * i}, now=0.0,
                 adapters=isched.Adapters(frozenset({f"x{i % 3}"}), frozenset(), 2))
scorers = (isched.QueueScorer(), isched.KvCacheUtilizationScorer(), isched.PrefixCacheScorer(), isched.LoraAffinityScorer())
weighted = tuple(isched.WeightedScorer(scorer) for scorer in scorers)
scheduler = isched.Scheduler(isched.SchedulingProfile(isched.MaxScorePicker(), weighted))
request, rng, endpoints = isched.InferenceRequest(request_id="r", model="x1"), np.random.default_rng(0), pool.snapshot()
scheduler.schedule(request, endpoints, now=0.0, rng=rng)
before = rtsys.get_allocation_stats()
for _ in range(200):
    scheduler.schedule(request, endpoints, now=0.0, rng=rng)
after = rtsys.get_allocation_stats()
isched.minmax(endpoints[isched.WAITING_QUEUE_SIZE])
counted = rtsys.get_allocation_stats()
print(json.dumps([after.alloc - before.alloc, counted.alloc - after.alloc]))
"""


def test_a_compiled_decision_allocates_nothing_in_its_kernel():
    environment = {**os.environ, "NUMBA_NRT_STATS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATIONS], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    decisions, counted = json.loads(done.stdout)
    assert decisions == 0
    assert counted > 0  # what does allocate is seen
