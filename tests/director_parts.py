"""Parts that a director is tried with: a meter that keeps count, a gate by hand, plug-ins that raise."""

import json

import numpy as np

import inferencesched as isched
from inferencesched.director import Director, ServingPool
from inferencesched.errors import RateLimitedError
from inferencesched.flowcontrol import FlowController
from inferencesched.framework import Denial


def chat(text="Hello", model="llama", **more):
    """Return the bytes of a chat request."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **more}).encode()


def fleet(*names, address=""):
    """Return a pool of these endpoints."""
    pool = isched.InferencePool()
    for name in names:
        pool.join(name, address=f"{name}:8000")
    return pool


def scheduler(*producers):
    """Return a scheduler that goes by queue length, over what these producers say."""
    return isched.Scheduler(isched.default_profile(), producers=producers)


def director(pool=None, **more):
    """Return a director of one pool."""
    serving = {key: more.pop(key) for key in ("controller", "screeners", "admitters", "pre_request") if key in more}
    served = ServingPool(
        fleet("a", "b") if pool is None else pool, more.pop("scheduler", None) or scheduler(), **serving
    )
    return Director({"llama": served}, **more)


def rng():
    return np.random.default_rng(7)


class Gate:
    """A gate of so many places, by hand."""

    def __init__(self, room=1):
        self.room, self.inside = room, 0

    def observe(self, endpoints, now):
        pass

    def level(self, now):
        return 1.0 if self.inside >= self.room else 0.0

    def dispatched(self, ticket, now):
        self.inside += 1

    def finished(self, ticket, now):
        self.inside -= 1


def queue(room=1, **more):
    """Return a controller with so many places at the servers."""
    return FlowController(gate=Gate(room), **more)


class Counting:
    """A meter that knows what is out, and refuses beyond a limit."""

    def __init__(self, most=None):
        self.most, self.open, self.settled, self.cancelled = most, {}, [], []
        self.number = 0

    def reserve(self, identity, model, tokens, *, now):
        if self.most is not None and len(self.open) >= self.most:
            raise RateLimitedError("counting", "full", 2.5)
        self.number += 1
        self.open[self.number] = tokens
        return self.number

    def settle(self, receipt, tokens, *, now):
        self.settled.append((self.open.pop(receipt), tokens))

    def cancel(self, receipt, *, now):
        self.cancelled.append(self.open.pop(receipt))


class Log:
    """A sink that remembers."""

    def __init__(self):
        self.events = []

    def emit(self, event):
        self.events.append(event)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


class Broken:
    """Whatever it is asked, it raises."""

    def __init__(self, error=RuntimeError("boom")):  # noqa: B008  the same for all, and never changed
        self.error = error

    def fail(self, *_, **__):
        raise self.error

    identify = encode = reserve = screen = admit = before_request = fail


class Says:
    """A plug-in that denies, or does not."""

    def __init__(self, reason="", status=429):
        self.denial = Denial(reason, status) if reason else None
        self.asked = 0

    def _answer(self, *_):
        self.asked += 1
        return self.denial

    admit = before_request = _answer


class Keeps:
    """A screener that keeps these names."""

    def __init__(self, *names):
        self.names, self.saw = names, None

    def screen(self, request, endpoints, cycle):
        self.saw = endpoints.names
        return np.array([name in self.names for name in endpoints.names], dtype=np.bool_)
