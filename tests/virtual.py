"""Time that passes when nobody has anything to do: an event loop and threads that wait for hours in no time.

One thing happens after the other, in an order that is the same every time: what is ready goes first come, first served, and
when nothing is, the time is that of whoever wakes first.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait: its clock jumps to the next timer."""

    def __init__(self):
        super().__init__()
        self.at = 0.0
        self.turns = 0

    def time(self):
        return self.at

    def _run_once(self):
        self.turns += 1
        if not self._ready:
            self.at = max(self.at, min((each.when() for each in self._scheduled if not each.cancelled()), default=0.0))
        super()._run_once()


def run(main: Callable[[VirtualLoop], Awaitable[Any]]) -> Any:
    """Run a coroutine in a loop of virtual time. A callback that raised, or a task nobody asked after, is an error."""
    loop, wrong = VirtualLoop(), []
    loop.set_exception_handler(lambda _, context: wrong.append(context))
    try:
        answer = loop.run_until_complete(main(loop))
        left = [task for task in asyncio.all_tasks(loop) if not task.done()]
    finally:
        loop.close()
    assert not wrong, wrong
    assert not left, left
    return answer


class Sleeper:
    """Where a thread sleeps: it goes on when it is called by its name, `go`."""

    def __init__(self):
        self.go = threading.Event()
        self.asleep = False


class VirtualThreads:
    """Threads of which one runs at a time, until it sleeps; when all sleep, time goes on."""

    def __init__(self):
        self.at = 0.0
        self._number = count()
        self._due: list[tuple[float, int, Sleeper]] = []
        self._ready: deque[Sleeper] = deque()
        self._idle = threading.Event()
        self._own = threading.local()
        self._threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []

    def time(self):
        return self.at

    def event(self):
        return VirtualEvent(self)

    def spawn(self, at: float, body: Callable[[], object]) -> None:
        """Let a thread begin at a time."""
        sleeper = Sleeper()
        sleeper.asleep = True
        heappush(self._due, (at, next(self._number), sleeper))

        def whole():
            self._own.sleeper = sleeper
            sleeper.go.wait()
            try:
                body()
            except BaseException as error:  # noqa: BLE001  `run` shows it
                self.errors.append(error)
            self._idle.set()

        thread = threading.Thread(target=whole, daemon=True)
        self._threads.append(thread)
        thread.start()

    def run(self) -> None:
        """Let everybody run until nobody will wake any more."""
        while self._ready or self._due:
            if self._ready:
                sleeper = self._ready.popleft()
            else:
                at, _, sleeper = heappop(self._due)
                if sleeper.asleep:
                    self.at = max(self.at, at)
            if not sleeper.asleep:
                continue
            sleeper.asleep = False
            self._idle.clear()
            sleeper.go.set()
            assert self._idle.wait(10.0), "a thread waits for something that is not of this time"
        for thread in self._threads:
            thread.join(0.5)
            assert not thread.is_alive(), "a thread sleeps and nobody will wake it"
        assert not self.errors, self.errors

    def sleep(self, until: float | None, sleeper: Sleeper | None = None) -> Sleeper:
        """Let the thread that calls sleep until a time, or until it is woken."""
        mine: Sleeper = self._own.sleeper
        again = Sleeper() if sleeper is None else sleeper
        mine = self._own.sleeper = again
        mine.asleep = True
        if until is not None:
            heappush(self._due, (until, next(self._number), mine))
        self._idle.set()
        mine.go.wait()
        return mine

    def wake(self, sleeper: Sleeper) -> None:
        self._ready.append(sleeper)


class VirtualEvent:
    """A `threading.Event` for one thread that waits."""

    def __init__(self, threads: VirtualThreads):
        self._threads = threads
        self._flag = False
        self._sleeper: Sleeper | None = None

    def set(self):
        self._flag = True
        if self._sleeper is not None:
            self._threads.wake(self._sleeper)
            self._sleeper = None

    def clear(self):
        self._flag = False

    def wait(self, timeout=None):
        if not self._flag:
            self._sleeper = Sleeper()
            self._threads.sleep(None if timeout is None else self._threads.at + timeout, self._sleeper)
            self._sleeper = None
        return self._flag
