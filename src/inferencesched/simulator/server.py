"""What do the simulated servers do with what they are sent?

A `Fleet` is all servers of one replay: the state of their engines, advanced by `_kernels.serving`. It knows the whole
trace, output lengths included; nothing of that reaches a scheduler but through signals and events.
"""

from collections.abc import Sequence
from math import inf, isfinite, isnan
from typing import Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from inferencesched._kernels import failing, serving
from inferencesched._kernels import serving_state as columns
from inferencesched._typing import FloatArray, IntArray
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.simulator.engine import EngineConfig, StepTime, coefficients, settings

FIRST_TOKEN: Final = columns.TOKEN_EVENT
FINISHED: Final = columns.FINISH_EVENT
#: How much servers may say of their blocks between two looks at the log.
_LOG: Final = 65_536


class Events(NamedTuple):
    """What happened on the servers, in order of time?

    ``time`` float64[M] ms, ``kind`` int8[M] (`FIRST_TOKEN` or `FINISHED`), ``request`` int64[M], places in the trace.
    """

    time: FloatArray
    kind: NDArray[np.int8]
    request: IntArray


class Rollout(NamedTuple):
    """What would come of sending one request to each server? float64[S] ms each.

    When its first token and its last would come, and by how much those in flight there would end later, summed.
    """

    first_token: FloatArray
    finish: FloatArray
    delay: FloatArray


class BlockNews(NamedTuple):
    """What did the servers say of their prompts' blocks? By server, in order of time; generated tokens are left out.

    ``time`` float64[M] ms, when the pass began; ``news`` int64[M, 3]: the server; the request of which so many leading blocks are there
    now, or -1; that number of blocks, or the id of a block that was evicted.
    """

    time: FloatArray
    news: IntArray


def _empty(rooms: Sequence[int]) -> IntArray:
    """Return the lists of servers with so many blocks each, all free."""
    lists = np.zeros((len(rooms), 11), dtype=np.int64)
    for column in (columns.WAIT_HEAD, columns.WAIT_TAIL, columns.LRU_HEAD, columns.LRU_TAIL, columns.SPARE):
        lists[:, column] = -1
    lists[:, columns.FREE] = lists[:, columns.ROOM] = rooms
    return lists


def _state(
    config: EngineConfig,
    requests: IntArray,
    blocks: IntArray,
    timings: Sequence[StepTime],
    rooms: Sequence[int],
    log: int = 0,
) -> columns.State:
    """Return empty servers with these step times and numbers of blocks, and requests that nobody has been sent; a log of so many entries."""
    total, count, most = len(requests), len(rooms), max(*rooms, config.host_blocks)
    rows = [*rooms, *([config.host_blocks] * count if config.host_blocks else [])]
    adapters = int(requests[:, columns.ADAPTER].max(initial=0)) + 1 if config.adapter_slots else 0
    return columns.State(
        requests=requests,
        times=np.full((total, 3), np.nan),
        servers=_empty(rows),
        clocks=np.full((count, 2 + config.adapter_slots), inf),
        queue=np.zeros((count, min(config.max_sequences, max(1, total))), dtype=np.int64),
        nodes=np.empty((len(rows), most, 4), dtype=np.int32),
        table=np.zeros((len(rows), 1 << (2 * most - 1).bit_length(), 2), dtype=np.int32),
        blocks=blocks,
        events=np.empty((2, 2 * total)),
        kinds=np.empty(2 * total, dtype=np.int8),
        # a gap a token at most; memory never touched costs nothing
        gaps=np.empty((2, int(np.maximum(requests[:, columns.OUTPUT], 1).sum()))),
        tally=np.zeros(7, dtype=np.int64),
        config=settings(config, count),
        timing=np.array([coefficients(each, config) for each in timings]),
        log=np.empty((log, 3), dtype=np.int64),
        logged=np.empty(log),
        order=np.zeros(total),
        slots=np.zeros((count, 2 * config.adapter_slots + adapters), dtype=np.int64),
    )


@final
class Fleet:
    """What do the servers hold, run and finish?

    Parameters
    ----------
    servers: how many, all alike (`config`, `timing`), unless `timings` and `kv_blocks` say otherwise of each.
    input_tokens, output_tokens: int64[N], the whole trace.
    blocks, offsets: ``blocks[offsets[i]:offsets[i + 1]]`` are request i's block ids, at least 0 and below 2^31.
    news: whether the servers tell of their blocks (`block_news`).
    adapters: int64[N], which LoRA adapter each request needs, counted from 1; 0 is none.
    timings, kv_blocks: one for each server, where they differ.

    Results, by place in the trace: ``first_token`` and ``finish`` float64[N] ms (NaN: not yet), ``server`` int64[N] (-1:
    not sent). Cost: about 10 ns a running request and pass; 2,000 passes a second of simulated time are a busy fleet.

    Errors: `InvalidInputError` for no servers, a prompt of no tokens, or a server that cannot hold the longest request.

    >>> from inferencesched.simulator.engine import timing
    >>> lengths = np.array([100, 100]), np.array([3, 3])
    >>> blocks, offsets = np.array([0, 0]), np.array([0, 1, 2])
    >>> fleet = Fleet(1, EngineConfig(), timing("dynamo-mocker"), *lengths, blocks, offsets)
    >>> fleet.enqueue(0, 0, 0.0)
    >>> fleet.enqueue(1, 0, 0.0)
    >>> fleet.advance(inf).request.tolist()  # first tokens, then the ends
    [0, 1, 0, 1]
    >>> fleet.cached_tokens.tolist()  # they share their first block, though they came together
    [0, 64]
    """

    def __init__(
        self,
        servers: int,
        config: EngineConfig,
        timing: StepTime,
        input_tokens: IntArray,
        output_tokens: IntArray,
        blocks: IntArray,
        offsets: IntArray,
        *,
        news: bool = False,
        adapters: IntArray | None = None,
        timings: Sequence[StepTime] | None = None,
        kv_blocks: Sequence[int] | None = None,
    ) -> None:
        self.config = config
        self.servers = whole_number("servers", servers, low=1)
        size, total = config.block_size, len(input_tokens)
        if input_tokens.min(initial=1) < 1 or output_tokens.min(initial=0) < 0:  # the first would never be answered
            shortest = (int(input_tokens.min(initial=1)), int(output_tokens.min(initial=0)))
            raise InvalidInputError("input_tokens, output_tokens", shortest, "at least 1, at least 0")
        #: How long a pass takes on each server, and how many blocks it has.
        self.timings = (timing,) * servers if timings is None else tuple(timings)
        self.rooms = (config.kv_blocks,) * servers if kv_blocks is None else tuple(kv_blocks)
        for name, each in (("timings", self.timings), ("kv_blocks", self.rooms)):
            if len(each) != servers:
                raise InvalidInputError(name, f"{len(each)} of them", f"one for each of {servers} servers")
        longest = int((input_tokens + output_tokens).max(initial=0))
        if longest > min(self.rooms) * size:
            needed = -(-longest // size)
            raise InvalidInputError("kv_blocks", min(self.rooms), f"at least {needed}: the longest request must fit")
        requests = np.zeros((total, 18), dtype=np.int64)
        if adapters is not None:
            if len(adapters) != total or adapters.min(initial=0) < 0:
                got = f"length {len(adapters)}, from {adapters.min(initial=0)}"
                raise InvalidInputError("adapters", got, f"{total} integers of at least 0")
            requests[:, columns.ADAPTER] = adapters
        requests[:, columns.INPUT] = input_tokens
        requests[:, columns.OUTPUT] = output_tokens
        requests[:, columns.NEXT] = requests[:, columns.SERVER] = -1
        if config.prefix_caching:  # else every block is the request's own: none can be found, or shared
            requests[:, columns.FULL] = np.minimum(np.diff(offsets), input_tokens // size)
        requests[:, columns.FIRST_BLOCK] = offsets[:-1]
        own = (input_tokens + output_tokens) // size - requests[:, columns.FULL]
        first_own = int(blocks.max(initial=-1)) + 1
        requests[:, columns.OWN_BLOCK] = first_own + np.cumsum(own) - own
        if first_own + int(own.sum()) >= 2**31:
            raise InvalidInputError("blocks", first_own + int(own.sum()), "block ids below 2**31")
        self.timing = timing
        # what one pass may say, and then some: the kernel stops where it is full
        most = config.max_tokens // size + 3 * min(config.max_sequences, max(1, total)) + 1
        log = most + _LOG if news else 0
        blocks = np.ascontiguousarray(blocks, dtype=np.int64)
        self._live = _state(config, requests, blocks, self.timings, self.rooms, log)
        self._news: list[BlockNews] = []
        self._trial: columns.State | None = None
        self._members: IntArray = np.zeros(total, dtype=np.int64)
        self._never: FloatArray = np.full(servers, np.nan)
        self._one: FloatArray = np.full(1, np.nan)
        self._overlap: IntArray = np.zeros(servers, dtype=np.int64)
        #: When each request in flight would end if nothing more came, and for which servers this is known.
        self._expected: FloatArray = np.full(total, np.nan)
        self._foreseen = np.zeros(servers, dtype=np.bool_)
        #: What each server said when it was last read: waiting, running, share of KV blocks held; float64[3, S].
        self.signals: FloatArray = np.full((3, servers), np.nan)
        self.regret_blocks = 0
        #: Which server has which slot of a gateway's pool; each its own number, unless somebody left.
        self.at_slot: IntArray = np.arange(servers)

    # -- what happens --------------------------------------------------------------------------------------------

    def advance(self, until: float, samples: FloatArray | None = None) -> Events:
        """Let every server run up to `until`, ms; what starts at that very time waits for what may arrive then.

        `samples` float64[S] says when each server's ``signals`` are read on the way, NaN for those that are not.
        Errors: `InvalidInputError` for a time that is NaN, or samples of another shape.
        """
        live = self._live
        if isnan(until):
            raise InvalidInputError("until", until, "ms, or inf for the end of all work")
        if samples is not None and (samples.shape != (self.servers,) or samples.dtype != np.float64):
            raise InvalidInputError("samples", f"{samples.dtype}{list(samples.shape)}", f"float64[{self.servers}]")
        asked = self._never if samples is None else samples.copy()
        while not serving.advance(live, until, asked, self.signals):
            self._hear()
        self._hear()
        count = int(live.tally[columns.EVENTS])
        live.tally[columns.EVENTS] = 0
        time, request, kind = live.events[0, :count], live.events[1, :count], live.kinds[:count]
        if count > 1:
            order = np.argsort(time, kind="stable")
            return Events(time[order], kind[order], request[order].astype(np.int64))
        return Events(time.copy(), kind.copy(), request.astype(np.int64))

    def _hear(self) -> None:
        """Take what the servers said out of the log."""
        count = int(self._live.tally[columns.LOGGED])
        if count:
            self._news.append(BlockNews(self._live.logged[:count].copy(), self._live.log[:count].copy()))
            self._live.tally[columns.LOGGED] = 0

    def block_news(self) -> list[BlockNews]:
        """What did the servers say of their blocks since this was last asked? Nothing, unless the fleet was made with `news`."""
        news, self._news = self._news, []
        return news

    def advance_to_event(self, until: float) -> float:
        """Let every server run until something happens first, or up to `until`; return up to when, ms.

        What happened is told by `advance`, which is to be called for that time. inf where `until` is, and nothing is left to do.
        Errors: `InvalidInputError` for a time that is NaN.
        """
        if isnan(until):
            raise InvalidInputError("until", until, "ms, or inf for the end of all work")
        return float(serving.advance_to_event(self._live, until))

    def enqueue(self, place: int, server: int, now: float, order: float = 0.0) -> None:
        """Send the request at this place of the trace to a server, at `now` ms.

        `order` says where it stands in the line of an engine that is ``ordered``: least first, ties as they come.

        Errors: `InvalidInputError` for a server that is not there, a request that is not there or was sent before, or
        a time that is not finite.
        """
        if not 0 <= server < self.servers:
            raise InvalidInputError("server", server, f"0 to {self.servers - 1}")
        self._to_send(place, now)
        live = self._live
        serving.overlaps(live, place, self._overlap)
        self.regret_blocks += int(self._overlap.max() - self._overlap[server])
        self._foreseen[server] = False
        live.order[place] = order
        serving.enqueue(live, place, server, now)

    def rollout(self, place: int, now: float) -> Rollout:
        """What if this request went to each server, and nothing came after it? On copies: nothing changes.

        Cost: a copy of every server and a run until it is empty; what it held before is foreseen once a change.
        Errors: as `enqueue`.
        """
        self._to_send(place, now)
        if self._trial is None:
            live = self._live
            trial = _state(self.config, live.requests.copy(), live.blocks, self.timings[:1], (max(self.rooms),))
            self._trial = trial._replace(order=live.order)
        outcome = Rollout(*(np.empty(self.servers) for _ in Rollout._fields))
        for server in range(self.servers):
            if not self._foreseen[server]:
                members = self._try(server)
                self._expected[members] = self._trial.times[members, columns.FINISH]
                self._foreseen[server] = True
            members = self._try(server, place, now)
            times = self._trial.times
            outcome.first_token[server] = times[place, columns.FIRST_TOKEN]
            outcome.finish[server] = times[place, columns.FINISH]
            outcome.delay[server] = float((times[members, columns.FINISH] - self._expected[members]).sum())
        return outcome

    def _to_send(self, place: int, now: float) -> None:
        """Refuse what the kernels would not survive: they check no bounds."""
        requests = self._live.requests
        if not (0 <= place < len(requests) and requests[place, columns.SERVER] < 0):
            raise InvalidInputError("place", place, "a request of the trace that was not sent yet")
        if not isfinite(now):
            raise InvalidInputError("now", now, "a finite number of ms")

    def _try(self, server: int, place: int | None = None, now: float = 0.0) -> IntArray:
        """Run a copy of a server until it is empty, with one request more if asked; return who was in flight there."""
        live, trial = self._live, self._trial
        assert trial is not None
        count = serving.copy_server(live, server, trial, self._members)
        members = self._members[:count].copy()
        if place is not None:
            trial.requests[place] = live.requests[place]
            trial.times[place] = np.nan
            serving.enqueue(trial, place, 0, now)
        trial.tally[:] = 0
        serving.advance(trial, inf, self._one, self.signals)
        return members

    def crash(self, server: int) -> tuple[IntArray, IntArray]:
        """Let a server lose everything, its cache too; return who can be sent again, and who had its first token and is lost.

        It is empty from now on: have nobody sent there while it is down. Places in the trace, int64[M]. Errors: `InvalidInputError`.
        """
        if not 0 <= server < self.servers:
            raise InvalidInputError("server", server, f"0 to {self.servers - 1}")
        count = failing.crash(self._live, server, self._members)
        members = self._members[:count].copy()
        self._foreseen[server] = False
        begun = ~np.isnan(self._live.times[members, columns.FIRST_TOKEN])
        return members[~begun], members[begun]

    def prefill_only(self, place: int) -> None:
        """Have the request at this place end with its first token where it is sent next: its prompt is computed there, no more."""
        self._live.requests[place, columns.OUTPUT] = 1

    def afresh(self, place: int, output_tokens: int) -> None:
        """Have a request that had no token yet be sent once more, whole."""
        requests = self._live.requests
        requests[place, columns.OUTPUT] = output_tokens
        for column in (columns.GENERATED, columns.COMPUTED, columns.GIVEN):
            requests[place, column] = 0
        requests[place, columns.SERVER] = -1
        self._live.times[place] = np.nan

    def in_flight(self, server: int) -> int:
        """How many requests does a server have, waiting ones included?"""
        return int(self._live.servers[server, [columns.WAITING, columns.RUNNING]].sum())

    def hand_over(self, place: int, output_tokens: int) -> None:
        """Have a request whose prompt was computed (`prefill_only`) be sent once more, with its keys and values, for the rest.

        The next server needs room for them, and computes the prompt's last token; what the first one said of its times is forgotten.
        """
        self.afresh(place, output_tokens)
        self._live.requests[place, columns.GIVEN] = self._live.requests[place, columns.INPUT]

    def missing_tokens(self, place: int, server: int) -> int:
        """How many tokens of this prompt does a server not have yet? What a transfer would have to bring."""
        serving.overlaps(self._live, place, self._overlap)
        live = self._live
        return int(live.requests[place, columns.INPUT]) - int(self._overlap[server]) * self.config.block_size

    def adapters_seen(self, server: int) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
        """Which adapters were loaded, ran and waited when this server was last read?"""
        row = self._live.slots[server, 2 * self.config.adapter_slots :]
        bits = (columns.LOADED_BIT, columns.RUNNING_BIT, columns.WAITING_BIT)
        loaded, running, waiting = (frozenset((np.flatnonzero(row[1:] & bit) + 1).tolist()) for bit in bits)
        return loaded, running, waiting

    @property
    def state(self) -> columns.State:
        """What do the kernels work on? Not for anybody else."""
        return self._live

    # -- what came of it -----------------------------------------------------------------------------------------

    @property
    def server(self) -> IntArray:
        """Where was each request sent, int64[N]? -1 is nowhere."""
        return self._live.requests[:, columns.SERVER]

    @property
    def first_token(self) -> FloatArray:
        """When did each request's first token come, float64[N] ms? NaN is not yet."""
        return self._live.times[:, columns.FIRST_TOKEN]

    @property
    def finish(self) -> FloatArray:
        """When did each request end, float64[N] ms? NaN is not yet."""
        return self._live.times[:, columns.FINISH]

    @property
    def cached_tokens(self) -> IntArray:
        """How many prompt tokens were found cached at each request's first admission, int64[N]?"""
        return self._live.requests[:, columns.CACHED]

    @property
    def cached_tokens_all(self) -> IntArray:
        """The same, re-admissions after a preemption included, int64[N]?"""
        return self._live.requests[:, columns.CACHED_ALL]

    @property
    def prompt_tokens_all(self) -> IntArray:
        """How many tokens were there to compute at all admissions, int64[N]? Generated ones count after a preemption."""
        return self._live.requests[:, columns.PROMPT_ALL]

    @property
    def preemptions(self) -> IntArray:
        """How often was each request thrown out, int64[N]?"""
        return self._live.requests[:, columns.PREEMPTIONS]

    @property
    def passes(self) -> int:
        """How many passes did all servers make?"""
        return int(self._live.tally[columns.PASSES])

    @property
    def adapter_loads(self) -> int:
        """How often was a LoRA adapter loaded?"""
        return int(self._live.tally[columns.LOADS])

    @property
    def fetched_blocks(self) -> int:
        """How many blocks were fetched from hosts' memories?"""
        return int(self._live.tally[columns.FETCHED])

    @property
    def evictions(self) -> int:
        """How many cached blocks were evicted?"""
        return int(self._live.tally[columns.EVICTED])

    def itl(self, points: tuple[float, ...]) -> tuple[float, ...]:
        """What are the mean and these percentiles of all gaps between two tokens of a request, ms? NaN if there are none.

        Percentiles interpolate linearly, as numpy's default does.
        """
        count = int(self._live.tally[columns.GAPS])
        lengths, weights = self._live.gaps[0, :count], self._live.gaps[1, :count]
        if not count:
            return (float("nan"),) * (len(points) + 1)
        order = np.argsort(lengths, kind="stable")
        lengths, upto = lengths[order], np.cumsum(weights[order])
        total = float(upto[-1])
        mean = float((lengths * weights[order]).sum() / total)
        answers = []
        for point in points:
            place = (total - 1.0) * point / 100.0
            low, high = np.searchsorted(upto, [np.floor(place), np.ceil(place)], side="right")
            answers.append(float(lengths[low] + (lengths[high] - lengths[low]) * (place - np.floor(place))))
        return (mean, *answers)

    def check(self) -> None:
        """Assert every relation between requests, blocks and lists. For tests; linear in all of them."""
        live, size = self._live, self.config.block_size
        for s in range(self.servers):
            row = live.servers[s]
            running = live.queue[s, : row[columns.RUNNING]].tolist()
            waiting, i = [], int(row[columns.WAIT_HEAD])
            while i >= 0:
                waiting.append(i)
                i = int(live.requests[i, columns.NEXT])
            assert len(waiting) == row[columns.WAITING]
            assert (waiting[-1] if waiting else -1) == row[columns.WAIT_TAIL]
            assert len(set(running) | set(waiting)) == len(running) + len(waiting)
            assert all(live.requests[i, columns.SERVER] == s for i in running + waiting)
            assert all(live.requests[i, columns.HELD] == 0 for i in waiting)
            entries = live.table[s][live.table[s, :, 1] != 0]
            nodes = {int(ident): live.nodes[s, node - 1].tolist() for ident, node in entries.tolist()}
            assert all(node[columns.ID] == ident for ident, node in nodes.items())
            cached, node = 0, int(row[columns.LRU_HEAD])
            while node >= 0:
                assert live.nodes[s, node, columns.REFERENCES] == 0
                cached, node = cached + 1, int(live.nodes[s, node, columns.FOLLOWING])
            assert cached == row[columns.EVICTABLE] == sum(node[columns.REFERENCES] == 0 for node in nodes.values())
            # in a pass blocks are held ahead of COMPUTED: for the chunk, too
            held: dict[int, int] = {}
            anonymous = 0
            for i in running:
                length = int(live.requests[i, columns.COMPUTED] + live.requests[i, columns.CHUNK])
                assert live.requests[i, columns.HELD] == -(-length // size)
                anonymous += int(live.requests[i, columns.HELD]) - length // size
                for j in range(length // size):
                    full, first = live.requests[i, columns.FULL], live.requests[i, columns.FIRST_BLOCK]
                    own = int(live.requests[i, columns.OWN_BLOCK] + j - full)
                    ident = int(live.blocks[first + j]) if j < full else own
                    held[ident] = held.get(ident, 0) + 1
            assert held == {i: node[columns.REFERENCES] for i, node in nodes.items() if node[columns.REFERENCES]}
            assert (
                row[columns.FREE] + row[columns.EVICTABLE] + len(held) + anonymous == row[columns.ROOM] == self.rooms[s]
            )
            many = self.config.adapter_slots
            for adapter, users in zip(live.slots[s, :many], live.slots[s, many : 2 * many], strict=True):
                assert users == sum(adapter > 0 and live.requests[i, columns.ADAPTER] == adapter for i in running)
            if self.config.host_blocks:
                host = live.servers[self.servers + s]
                assert host[columns.FREE] + host[columns.EVICTABLE] == self.config.host_blocks
                assert (live.table[self.servers + s, :, 1] != 0).sum() == host[columns.EVICTABLE]
