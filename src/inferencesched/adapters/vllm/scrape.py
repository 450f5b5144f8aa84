"""What do the model servers say of themselves, every so often? Their metrics pages, read over HTTP into a pool.

One task a server: a slow one holds nobody up. A server that does not answer is asked again later and later, with a jitter so that a
hundred of them are not asked in the same millisecond; what was known of it grows old, which the scheduler's `StalePolicy` judges.
"""

from asyncio import Task, TaskGroup, sleep, timeout
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, final

import httpx
import numpy as np

from inferencesched.errors import InvalidInputError, MetricsPageError, UnknownNameError, duration, whole_number
from inferencesched.observability.engines import EngineReading, MetricsExtractor
from inferencesched.observability.pages import MAX_BYTES
from inferencesched.pool import InferencePool

#: How many doublings of the interval a silent server's pause may reach before the policy's own limit cuts it.
_DOUBLINGS: Final = 16


@dataclass(frozen=True, slots=True)
class ScrapePolicy:
    """How often, how patiently?

    Parameters
    ----------
    interval: seconds from the end of one reading to the next.
    timeout: seconds for all of a reading. vLLM may take more than one while streams begin.
    jitter: share of a pause by which it is longer or shorter, by chance.
    longest: the pause doubles with each failure in a row, up to so many seconds.
    max_bytes: of a page; what is larger is cut off and not read.
    """

    interval: float = 1.0
    timeout: float = 2.0
    jitter: float = 0.1
    longest: float = 10.0
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        for name in ("interval", "timeout", "longest"):
            duration(name, getattr(self, name))
        if not 0 <= self.jitter < 1:
            raise InvalidInputError("jitter", self.jitter, "a share from 0 to below 1")
        whole_number("max_bytes", self.max_bytes, 1)

    def pause(self, failures: int, rng: np.random.Generator) -> float:
        """Return the seconds until the next reading, after so many failures in a row."""
        # capped at `longest`, but never shorter than the interval
        usual = max(self.interval, min(self.longest, self.interval * 2.0 ** min(failures, _DOUBLINGS)))
        return usual * (1.0 + self.jitter * (2.0 * rng.random() - 1.0))


class Scrape(NamedTuple):
    """What came of one reading? ``failure`` is empty, or a low-cardinality word:

    ``timeout``, ``connect``, ``reset``, ``status``, ``too_large``, ``unreadable`` (a page, or one of no engine that is known).
    """

    endpoint: str
    at: float
    reading: EngineReading | None = None
    failure: str = ""
    detail: str = ""


@final
class Scraper:
    """What do a pool's servers say of themselves?

    Parameters
    ----------
    pool: whose members are read; those that join and leave meanwhile too.
    client: of the gateway's, with its own limits.
    clock: the clock of the director (`AsyncDirector.now`), so that ages are right.
    rng: for the jitter.
    extractor: which engines are known.
    url: where a server's page is; ``http://ADDRESS/metrics`` by default.
    on_scrape: told of each reading, good or bad. A page with none of the known names is one with ``unreadable``: never a server that
        looks idle.

    `run` goes on until it is cancelled; `scrape` reads one server once.
    """

    __slots__ = ("_client", "_clock", "_extractor", "_failures", "_on_scrape", "_policy", "_pool", "_rng", "_url")

    def __init__(
        self,
        pool: InferencePool,
        client: httpx.AsyncClient,
        *,
        clock: Callable[[], float],
        rng: np.random.Generator,
        policy: ScrapePolicy | None = None,
        extractor: MetricsExtractor | None = None,
        url: Callable[[str], str] = "http://{}/metrics".format,
        on_scrape: Callable[[Scrape], object] | None = None,
    ) -> None:
        self._pool = pool
        self._client = client
        self._clock = clock
        self._rng = rng
        self._policy = ScrapePolicy() if policy is None else policy
        self._extractor = MetricsExtractor(max_bytes=self._policy.max_bytes) if extractor is None else extractor
        self._url = url
        self._on_scrape = on_scrape
        self._failures: dict[str, int] = {}

    @property
    def failures(self) -> dict[str, int]:
        """How often in a row could each server not be read? Those that were read the last time are not in it."""
        return dict(self._failures)

    async def scrape(self, name: str) -> Scrape:
        """Read one server, and observe it. What is wrong with it is in the answer, never raised.

        Its page is as old as the question: what it says is dated from when it was asked. Errors: `UnknownNameError` for nobody.
        """
        address = self._address(name)
        at = self._clock()
        try:
            async with timeout(self._policy.timeout):
                page = await self._page(address)
            reading = self._extractor.read(page)
            if name in self._pool.names:  # it may have left meanwhile
                self._pool.observe(name, reading.columns, now=at, adapters=reading.adapters)
            found = Scrape(name, at, reading)
        except TimeoutError:
            found = Scrape(name, at, failure="timeout", detail=f"no page within {self._policy.timeout:g} s")
        except httpx.TimeoutException as error:
            found = Scrape(name, at, failure="timeout", detail=str(error))
        except httpx.ConnectError as error:
            found = Scrape(name, at, failure="connect", detail=str(error))
        except httpx.TransportError as error:
            found = Scrape(name, at, failure="reset", detail=str(error))
        except _RefusedError as error:
            found = Scrape(name, at, failure=error.failure, detail=str(error))
        except (MetricsPageError, InvalidInputError, httpx.DecodingError, httpx.InvalidURL) as error:
            # a page that is none, a value that cannot be, bytes that are not what their encoding says, an address that is none
            found = Scrape(name, at, failure="unreadable", detail=str(error))
        if found.failure:
            self._failures[name] = self._failures.get(name, 0) + 1
        else:
            self._failures.pop(name, None)
        if self._on_scrape is not None:
            self._on_scrape(found)
        return found

    async def run(self) -> None:
        """Read every member of the pool again and again, until cancelled; members come and go."""
        async with TaskGroup() as group:
            tasks: dict[str, Task[None]] = {}
            while True:
                names = set(self._pool.names)
                for gone in tasks.keys() - names:
                    tasks.pop(gone).cancel()
                    self._failures.pop(gone, None)
                for name in sorted(names - tasks.keys()):
                    tasks[name] = group.create_task(self._follow(name), name=f"scrape {name}")
                await sleep(self._policy.interval)

    async def _follow(self, name: str) -> None:
        await sleep(self._policy.interval * self._policy.jitter * self._rng.random())
        while name in self._pool.names:
            await self.scrape(name)
            await sleep(self._policy.pause(self._failures.get(name, 0), self._rng))

    async def _page(self, address: str) -> bytes:
        async with self._client.stream("GET", self._url(address)) as response:
            if response.status_code != httpx.codes.OK:
                raise _RefusedError("status", f"status {response.status_code}")
            page = bytearray()
            async for chunk in response.aiter_bytes():
                page += chunk
                if len(page) > self._policy.max_bytes:
                    raise _RefusedError("too_large", f"a page of more than {self._policy.max_bytes} bytes")
        return bytes(page)

    def _address(self, name: str) -> str:
        endpoints = self._pool.snapshot()
        for position, known in enumerate(endpoints.names):
            if known == name:
                return endpoints.address(position)
        raise UnknownNameError("name", name, endpoints.names)


class _RefusedError(Exception):
    """A page that is not read further."""

    def __init__(self, failure: str, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure
