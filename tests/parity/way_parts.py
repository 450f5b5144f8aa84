"""What the runners of the whole way have in common."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

import inferencesched as isched
from inferencesched.config.catalogue import CATALOGUE
from inferencesched.director import Decision, Director, ServingPool

SPECS = {spec.name: spec for spec in CATALOGUE}
PURE, CONFIG, SCENARIO = "flow control: pure", "flow control: config", "flow control: scenario"


class Gate:
    def __init__(self, level: float) -> None:
        self.at = level

    def observe(self, endpoints: Any, now: float) -> None: ...
    def level(self, now: float) -> float:
        return self.at

    def dispatched(self, ticket: Any, now: float) -> None: ...
    def finished(self, ticket: Any, now: float) -> None: ...


class Screens:
    def __init__(self, kept: list[str]) -> None:
        self.kept, self.saw = kept, ()

    def screen(self, request: Any, endpoints: isched.Endpoints, state: Any) -> Any:
        self.saw = endpoints.names
        return np.array([name in self.kept for name in endpoints.names], dtype=np.bool_)


BODY = json.dumps({"model": "m", "prompt": "Hello"}).encode()


def decided(made: Director, body: bytes = BODY, headers: Mapping[str, str] | None = None, now: float = 1.0) -> Decision:
    answer = made.decide(body, headers or {}, now=now, rng=np.random.default_rng(7), path="/v1/completions")
    assert isinstance(answer, Decision), answer
    return answer


def serving(endpoints: int = 1, **more: Any) -> ServingPool:
    pool = isched.InferencePool()
    for i in range(endpoints):
        pool.join(f"ep-{i}")
    return ServingPool(pool, more.pop("scheduler", None) or isched.Scheduler(isched.default_profile()), **more)
