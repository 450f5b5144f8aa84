"""Which replays make a comparison? Traffic, policies, loads, fleets and seeds, as a grid of cells."""

import hashlib
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Final

import msgspec

from inferencesched.errors import InvalidInputError, UnknownNameError, whole_number
from inferencesched.simulator.engine import EngineConfig, timing
from inferencesched.simulator.generator import Traffic, generate
from inferencesched.simulator.policies import policy
from inferencesched.simulator.readers import SCHEMAS, read_trace
from inferencesched.simulator.simulation import Cluster
from inferencesched.simulator.transforms import jitter, thin
from inferencesched.simulator.workload import Workload

_EMBEDDED: Final = "embedded"


@dataclass(frozen=True, slots=True)
class Source:
    """Which traffic? ``path`` of a trace, or empty for the seeded generator's; ``spread`` has arrivals spread within the trace's own ticks by each seed.

    ``head`` takes the first so many requests; 0 is all. ``schema`` says how the trace is written, where its lines do not (`SCHEMAS`); ``share`` of its
    conversations are kept, drawn by each seed.
    """

    path: str = ""
    spread: bool = False
    head: int = 0
    schema: str = ""
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.schema and self.schema not in SCHEMAS:
            raise UnknownNameError("schema", self.schema, list(SCHEMAS))
        if not 0 < self.share <= 1:
            raise InvalidInputError("share", self.share, "above 0, at most 1")

    @property
    def name(self) -> str:
        """What is it called in tables?"""
        plain = Path(self.path).stem if self.path else _EMBEDDED
        return plain + (f", {self.share:g} of it" if self.share < 1 else "") + (", spread" if self.spread else "")

    def load(self, seed: int) -> Workload:
        """Return the requests of this seed. Errors: those of `read_trace`."""
        workload = _read(self.path, self.schema)
        if self.head:
            workload = workload.head(self.head)
        if self.share < 1:
            workload = thin(workload, self.share, seed)
        return jitter(workload, seed) if self.spread else workload


@lru_cache(maxsize=4)
def _read(path: str, schema: str) -> Workload:
    return read_trace(path, schema=schema or None) if path else generate(Traffic(), seed=0)


@dataclass(frozen=True, slots=True)
class Cell:
    """What is replayed: which traffic, by whom, on what, how fast, with which draws?"""

    source: Source
    policy: str
    load: float
    servers: int
    timing: str
    kv_blocks: int
    seed: int
    scrape_ms: float = 50.0
    answer_ms: float = 5.0
    news_ms: float = 50.0
    closed: bool = False

    def cluster(self) -> Cluster:
        """Return the fleet."""
        return Cluster(
            servers=self.servers,
            engine=EngineConfig(kv_blocks=self.kv_blocks),
            timing=timing(self.timing),
            speedup=self.load,
            scrape_ms=self.scrape_ms,
            answer_ms=self.answer_ms,
            news_ms=self.news_ms,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class Grid:
    """Which cells? The product of what each field lists, in the order of the fields, seeds last.

    ``fleets`` are (servers, step time, KV blocks). Signals are late as asked. ``closed`` runs closed loops. Errors: `InvalidInputError` for an empty list, a
    value given twice, or one that no cell can have; `UnknownNameError` for a policy or a step time.

    >>> grid = Grid((Source(),), ("random", "lmetric"), (1.0, 2.0), ((4, "dynamo-mocker", 16384),), seeds=2)
    >>> len(grid.cells()), grid.cells()[0].policy
    (8, 'random')
    """

    sources: tuple[Source, ...]
    policies: tuple[str, ...]
    loads: tuple[float, ...]
    fleets: tuple[tuple[int, str, int], ...]
    seeds: int = 1
    scrape_ms: float = 50.0
    answer_ms: float = 5.0
    news_ms: float = 50.0
    closed: bool = False

    def __post_init__(self) -> None:
        for name in ("sources", "policies", "loads", "fleets"):
            given = getattr(self, name)
            if not given or len(set(given)) != len(given):
                raise InvalidInputError(name, given, "at least one, each once")
        whole_number("seeds", self.seeds, low=1)
        for name in self.policies:
            policy(name)
        for cell in self.cells():
            cell.cluster()  # what is out of range is told now, not in the middle of the night

    def cells(self) -> list[Cell]:
        """Return them all, in order."""
        return [
            Cell(source, name, load, *fleet, seed, self.scrape_ms, self.answer_ms, self.news_ms, self.closed)
            for source, name, load, fleet, seed in product(
                self.sources, self.policies, self.loads, self.fleets, range(self.seeds)
            )
        ]

    def digest(self) -> str:
        """Return a name of this grid: who resumes a journal must ask for the same one."""
        return hashlib.sha256(msgspec.json.encode(asdict(self))).hexdigest()[:16]
