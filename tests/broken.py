"""Plug-ins with one fault each: what the checks of `inferencesched.testing` are held against."""

import random
from dataclasses import dataclass, field
from itertools import count

import numpy as np

import inferencesched as isched
from inferencesched import KV_CACHE_USAGE, RUNNING_REQUESTS, WAITING_QUEUE_SIZE
from inferencesched.framework import Reads

value = dataclass(frozen=True, slots=True)
LENGTH = isched.Signal("own_length", "requests")


def usage(endpoints):
    return 1.0 - isched.known(endpoints[KV_CACHE_USAGE], 1.0)


# -- scorers and filters -------------------------------------------------------------------------------------------


@value
class Good:
    """No fault at all."""

    reads = (Reads(KV_CACHE_USAGE, "lower"),)

    def score(self, request, endpoints, cycle):
        return usage(endpoints)


@value
class AsList:
    def score(self, request, endpoints, cycle):
        return usage(endpoints).tolist()


@value
class AllMembers:
    def score(self, request, endpoints, cycle):
        return np.ones(len(endpoints.members.names))


@value
class Float32:
    def score(self, request, endpoints, cycle):
        return usage(endpoints).astype(np.float32)


@value
class PercentNotShare:
    def score(self, request, endpoints, cycle):
        return usage(endpoints) * 100.0


@value
class NanForUnknown:
    def score(self, request, endpoints, cycle):
        return 1.0 - endpoints[KV_CACHE_USAGE]


@value
class WritesColumn:
    def score(self, request, endpoints, cycle):
        endpoints.matrix.setflags(write=True)
        endpoints.matrix[0] = 0.0
        endpoints.matrix.setflags(write=False)
        return usage(endpoints)


@value
class LeavesItOpen:
    def score(self, request, endpoints, cycle):
        endpoints.matrix.setflags(write=True)
        return usage(endpoints)


@value
class Remembers:
    seen: list = field(default_factory=list, compare=False, repr=False)

    def score(self, request, endpoints, cycle):
        self.seen.append(1)
        return usage(endpoints) / len(self.seen)

    def __hash__(self):
        return 0


@value
class GlobalChance:
    def score(self, request, endpoints, cycle):
        return np.full(len(endpoints), random.random())


@value
class NumpysGlobalChance:
    def filter(self, request, endpoints, cycle):
        return np.random.rand(len(endpoints)) > 0.5  # noqa: NPY002


@value
class OwnGenerator:
    def score(self, request, endpoints, cycle):
        return np.random.default_rng().random(len(endpoints))


@value
class ByPosition:
    def score(self, request, endpoints, cycle):
        return 1.0 / (1.0 + np.arange(len(endpoints)))


@value
class SumsEverybody:
    """Looks at members that were filtered out."""

    def score(self, request, endpoints, cycle):
        return np.full(len(endpoints), 1.0 / (1 + len(endpoints.members.names)))


@value
class DividesByTheRest:
    def score(self, request, endpoints, cycle):
        queue = isched.known(endpoints[WAITING_QUEUE_SIZE])
        return np.clip(queue / (len(endpoints) - 1), 0.0, 1.0)


@value
class MostOfNothing:
    def score(self, request, endpoints, cycle):
        queue = endpoints[WAITING_QUEUE_SIZE]
        return isched.known(1.0 - queue / max(1.0, np.nanmax(queue)))


@value
class WrongWay:
    reads = (Reads(KV_CACHE_USAGE, "higher"),)

    def score(self, request, endpoints, cycle):
        return usage(endpoints)


@value
class Overtaken:
    """Its own score never falls, but everybody else's rises more."""

    reads = (Reads(WAITING_QUEUE_SIZE, "lower"),)

    def score(self, request, endpoints, cycle):
        queue = isched.known(endpoints[WAITING_QUEUE_SIZE])
        fewest = queue.min()
        return np.where(queue == fewest, 0.5, 1.0 - 0.8 * np.minimum(fewest, 1.0))


@value
class ReadsMore:
    reads = (Reads(KV_CACHE_USAGE, "lower"),)

    def score(self, request, endpoints, cycle):
        return usage(endpoints) / (1.0 + isched.known(endpoints[RUNNING_REQUESTS]))


@value
class NotSoOptional:
    reads = (Reads(LENGTH, "lower", required=False),)

    def score(self, request, endpoints, cycle):
        return 1.0 / (1.0 + isched.known(endpoints[LENGTH]))


@value
class NoWordButAScore:
    def score(self, request, endpoints, cycle):
        return np.where(np.isnan(endpoints[KV_CACHE_USAGE]), 0.5, usage(endpoints))

    def scored(self, request, endpoints, cycle):
        return ~np.isnan(endpoints[KV_CACHE_USAGE])


@dataclass
class Thawed:
    weight: float = 0.5

    def score(self, request, endpoints, cycle):
        return self.weight * usage(endpoints)

    def __hash__(self):
        return hash(self.weight)


class Identity:
    """Equal to itself only."""

    __slots__ = ()

    def score(self, request, endpoints, cycle):
        return usage(endpoints)


@value
class Unhashable:
    weights: list = field(default_factory=list)

    def score(self, request, endpoints, cycle):
        return usage(endpoints)


class Addressed:
    __slots__ = ()

    def score(self, request, endpoints, cycle):
        return usage(endpoints)

    def __eq__(self, other):
        return type(self) is type(other)

    def __hash__(self):
        return 0


@value
class Unpicklable:
    weigh: object = field(default=lambda usage: usage, repr=False)

    def score(self, request, endpoints, cycle):
        return self.weigh(usage(endpoints))


@value
class ReadsTwice:
    reads = (Reads(KV_CACHE_USAGE, "lower"), Reads(KV_CACHE_USAGE))

    def score(self, request, endpoints, cycle):
        return usage(endpoints)


@value
class Positions:
    """A filter that says where, not whether."""

    def filter(self, request, endpoints, cycle):
        return np.flatnonzero(usage(endpoints) > 0.5)


@value
class ZeroOrOne:
    def filter(self, request, endpoints, cycle):
        return (usage(endpoints) > 0.5).astype(np.int8)


@value
class NoReason:
    def filter(self, request, endpoints, cycle):
        return usage(endpoints) > 0.5

    def why_dropped(self, request, endpoints, cycle, position):
        return ""


@value
class KeepsTheBusy:
    reads = (Reads(KV_CACHE_USAGE, "lower"),)

    def filter(self, request, endpoints, cycle):
        return endpoints[KV_CACHE_USAGE] >= 0.5


# -- pickers -------------------------------------------------------------------------------------------------------


@value
class PicksNumber:
    def pick(self, totals, endpoints, cycle):
        return int(np.argmax(totals))


@value
class PicksFloats:
    def pick(self, totals, endpoints, cycle):
        return np.array([float(np.argmax(totals))])


@value
class PicksBehindTheEnd:
    def pick(self, totals, endpoints, cycle):
        return np.array([np.argmax(totals), len(totals)], dtype=np.intp)


@value
class SortsInPlace:
    def pick(self, totals, endpoints, cycle):
        best = np.array([np.argmax(totals)], dtype=np.intp)
        totals.sort()
        return best


_turns = count()


@value
class Cursor:
    def pick(self, totals, endpoints, cycle):
        return np.array([next(_turns) % len(totals)], dtype=np.intp)


@value
class PicksByGlobalChance:
    def pick(self, totals, endpoints, cycle):
        return np.array([random.randrange(len(totals))], dtype=np.intp)


@value
class PicksThirdPlace:
    def pick(self, totals, endpoints, cycle):
        return np.array([min(2, len(totals) - 1)], dtype=np.intp)


@value
class NeedsTwo:
    def pick(self, totals, endpoints, cycle):
        return np.argsort(-totals, kind="stable")[1:2]


@value
class PicksWorst:
    def pick(self, totals, endpoints, cycle):
        return np.array([np.argmin(totals)], dtype=np.intp)


@value
class PicksBySecretColumn:
    reads = (Reads(isched.LAST_PICKED),)

    def pick(self, totals, endpoints, cycle):
        return np.array([np.lexsort((endpoints[RUNNING_REQUESTS], -totals))[0]], dtype=np.intp)


@value
class TellsUniform(isched.WeightedRandomPicker):
    """Draws by weight, and says that it does not."""

    def propensities(self, totals, endpoints):
        return np.full(len(totals), 1.0 / len(totals))


# -- handlers ------------------------------------------------------------------------------------------------------


def first_that_found(results):
    return next(name for name, result in results.items() if result is not None)


@value
class ForEver:
    def pick(self, request, profiles, results, cycle):
        return profiles

    def process_results(self, request, results, cycle):
        return isched.SchedulingResult(request, first_that_found(results), dict(results))


@value
class Invents:
    def pick(self, request, profiles, results, cycle):
        return {} if results else {"mine": isched.SchedulingProfile(isched.MaxScorePicker())}

    def process_results(self, request, results, cycle):
        return isched.SchedulingResult(request, "mine", dict(results))


@value
class Fails(ForEver):
    """Falls over where a profile failed."""

    def pick(self, request, profiles, results, cycle):
        return {} if results else profiles

    def process_results(self, request, results, cycle):
        return isched.SchedulingResult(request, next(iter(results)), {n: r.targets and r for n, r in results.items()})


@value
class NoSuchPrimary:
    def pick(self, request, profiles, results, cycle):
        return {} if results else profiles

    def process_results(self, request, results, cycle):
        return isched.SchedulingResult(request, "best", dict(results))


@value
class ShoutsHeaders:
    def pick(self, request, profiles, results, cycle):
        return {} if results else profiles

    def process_results(self, request, results, cycle):
        return isched.SchedulingResult(request, next(iter(results)), dict(results), headers={"X-Prefiller": "a"})


@value
class MovesOn:
    def pick(self, request, profiles, results, cycle):
        return {} if results else profiles

    def process_results(self, request, results, cycle):
        return isched.SchedulingResult(request, next(iter(results)), dict(results), headers={"turn": str(next(_turns))})


@value
class DrawsPrimary(MovesOn):
    def process_results(self, request, results, cycle):
        random.random()
        return isched.SchedulingResult(request, next(iter(results)), dict(results))


# -- producers -----------------------------------------------------------------------------------------------------


class Counter:
    """No fault: how many requests each endpoint was given, by its stay."""

    column = isched.Signal("given", "requests", freshness="cycle")

    def __init__(self):
        self.given = {}

    @property
    def produces(self):
        return (self.column,)

    def produce(self, request, endpoints, cycle):
        stays = [endpoints.stay(i) for i in range(len(endpoints))]
        return isched.Produced({self.column: np.array([float(self.given.get(s, 0)) for s in stays])}, dict(stays))

    def commit(self, receipt, slot, *, now):
        stay = slot, receipt[slot]
        self.given[stay] = self.given.get(stay, 0) + 1


class FillsMore(Counter):
    def produce(self, request, endpoints, cycle):
        columns, receipt, _ = super().produce(request, endpoints, cycle)
        return isched.Produced({**columns, isched.PREFIX_MATCH: np.zeros(len(endpoints))}, receipt)


class OutOfRange(Counter):
    def produce(self, request, endpoints, cycle):
        columns, receipt, _ = super().produce(request, endpoints, cycle)
        return isched.Produced({self.column: columns[self.column] - 1.0}, receipt)


class OneForAll(Counter):
    def produce(self, request, endpoints, cycle):
        return isched.Produced({self.column: np.zeros(1)}, super().produce(request, endpoints, cycle).receipt)


class NeedsTokens(Counter):
    def produce(self, request, endpoints, cycle):
        len(request.tokens)
        return super().produce(request, endpoints, cycle)


class CountsQuestions(Counter):
    """Learns while it is asked."""

    def produce(self, request, endpoints, cycle):
        produced = super().produce(request, endpoints, cycle)
        self.commit(produced.receipt, int(endpoints.slots[0]), now=cycle.now)
        return produced


class WritesSnapshot(Counter):
    def produce(self, request, endpoints, cycle):
        endpoints.matrix.setflags(write=True)
        endpoints.matrix[:] = 0.0
        endpoints.matrix.setflags(write=False)
        return super().produce(request, endpoints, cycle)


class Salted(Counter):
    def __init__(self):
        super().__init__()
        self.salt = next(_turns)

    def produce(self, request, endpoints, cycle):
        columns, receipt, _ = super().produce(request, endpoints, cycle)
        return isched.Produced({self.column: columns[self.column] + self.salt}, receipt)


class GlobalProducer(Counter):
    def commit(self, receipt, slot, *, now):
        random.random()
        super().commit(receipt, slot, now=now)


class NumbersPlaces(Counter):
    def produce(self, request, endpoints, cycle):
        return isched.Produced(
            {self.column: np.arange(float(len(endpoints)))}, super().produce(request, endpoints, cycle).receipt
        )


class CountsMembers(Counter):
    def produce(self, request, endpoints, cycle):
        everybody = np.full(len(endpoints), float(len(endpoints.members.names)))
        return isched.Produced({self.column: everybody}, super().produce(request, endpoints, cycle).receipt)


class BySlot(Counter):
    """Takes a slot for an endpoint."""

    def produce(self, request, endpoints, cycle):
        slots = endpoints.slots.tolist()
        return isched.Produced({self.column: np.array([float(self.given.get(s, 0)) for s in slots])}, None)

    def commit(self, receipt, slot, *, now):
        self.given[slot] = self.given.get(slot, 0) + 1


class LastReceiptOnly(Counter):
    """Cannot commit but what was produced last."""

    def produce(self, request, endpoints, cycle):
        produced = super().produce(request, endpoints, cycle)
        self.last = produced.receipt
        return produced

    def commit(self, receipt, slot, *, now):
        if receipt is not self.last:
            raise KeyError(slot)
        super().commit(receipt, slot, now=now)


class LateComesBack(Counter):
    """Gives a late commit to whoever has the slot now."""

    def __init__(self):
        super().__init__()
        self.owners = {}

    def produce(self, request, endpoints, cycle):
        self.owners |= {
            slot: max(gen, self.owners.get(slot, -1)) for slot, gen in map(endpoints.stay, range(len(endpoints)))
        }
        return super().produce(request, endpoints, cycle)

    def commit(self, receipt, slot, *, now):
        super().commit({slot: self.owners[slot]}, slot, now=now)


class WantsUsage(Counter):
    def settled(self, receipt, settlement, slot):
        assert settlement.usage.output_tokens >= 0


class ReadsQueueUnsaid(Counter):
    reads = (Reads(RUNNING_REQUESTS),)

    def produce(self, request, endpoints, cycle):
        queue = isched.known(endpoints[WAITING_QUEUE_SIZE])
        return isched.Produced({self.column: queue}, super().produce(request, endpoints, cycle).receipt)


# -- assigners -----------------------------------------------------------------------------------------------------


@value
class OneByOne:
    """No fault."""

    def assign(self, requests, endpoints, cycle):
        one = isched.Scheduler(isched.default_profile(), stale=isched.StalePolicy(assume="trust"))
        return [one.schedule(request, endpoints, now=cycle.now, rng=cycle.rng) for request in requests]


@value
class Backwards(OneByOne):
    def assign(self, requests, endpoints, cycle):
        return OneByOne.assign(self, requests, endpoints, cycle)[::-1]


@value
class OldStays(OneByOne):
    def assign(self, requests, endpoints, cycle):
        found = OneByOne.assign(self, requests, endpoints, cycle)
        for each in found:
            target = each.target._replace(generation=-1)
            each.profiles[each.primary] = isched.ProfileResult((target,))
        return found


#: (the check that has to see it, the plug-in)
BROKEN = (
    ("scorer:shape", AsList()),
    ("scorer:shape", AllMembers()),
    ("scorer:dtype", Float32()),
    ("scorer:range", PercentNotShare()),
    ("scorer:nan", NanForUnknown()),
    ("scorer:inputs", WritesColumn()),
    ("scorer:inputs", LeavesItOpen()),
    ("scorer:repeatable", Remembers()),
    ("scorer:repeatable", OwnGenerator()),
    ("scorer:chance", GlobalChance()),
    ("filter:chance", NumpysGlobalChance()),
    ("scorer:order", ByPosition()),
    ("scorer:remainder", SumsEverybody()),
    ("scorer:one-endpoint", DividesByTheRest()),
    ("scorer:unknown", MostOfNothing()),
    ("scorer:monotone", WrongWay()),
    ("scorer:monotone", Overtaken()),
    ("scorer:undeclared", ReadsMore()),
    ("scorer:optional", NotSoOptional()),
    ("scorer:scored", NoWordButAScore()),
    ("scorer:frozen", Thawed()),
    ("scorer:equality", Identity()),
    ("scorer:equality", Unhashable()),
    ("scorer:repr", Addressed()),
    ("scorer:pickle", Unpicklable()),
    ("scorer:reads", ReadsTwice()),
    ("filter:shape", Positions()),
    ("filter:dtype", ZeroOrOne()),
    ("filter:reasons", NoReason()),
    ("filter:monotone", KeepsTheBusy()),
    ("picker:shape", PicksNumber()),
    ("picker:dtype", PicksFloats()),
    ("picker:positions", PicksBehindTheEnd()),
    ("picker:inputs", SortsInPlace()),
    ("picker:repeatable", Cursor()),
    ("picker:chance", PicksByGlobalChance()),
    ("picker:order", PicksThirdPlace()),
    ("picker:one-endpoint", NeedsTwo()),
    ("picker:monotone", PicksWorst()),
    ("picker:undeclared", PicksBySecretColumn()),
    ("picker:propensities", TellsUniform()),
    ("profile-handler:ends", ForEver()),
    ("profile-handler:ends", Invents()),
    ("profile-handler:one-endpoint", Invents()),
    ("profile-handler:ends", Fails()),
    ("profile-handler:primary", NoSuchPrimary()),
    ("profile-handler:result", ShoutsHeaders()),
    ("profile-handler:repeatable", MovesOn()),
    ("profile-handler:chance", DrawsPrimary()),
    ("producer:reads", type("Unread", (Counter,), {"reads": ["queue"]})),
    ("producer:declared", FillsMore),
    ("producer:columns", OutOfRange),
    ("producer:columns", OneForAll),
    ("producer:requests", NeedsTokens),
    ("producer:inputs", WritesSnapshot),
    ("producer:produce-changes-nothing", CountsQuestions),
    ("producer:repeatable", Salted),
    ("producer:chance", GlobalProducer),
    ("producer:order", NumbersPlaces),
    ("producer:remainder", CountsMembers),
    ("producer:unknown", OutOfRange),
    ("producer:one-endpoint", OutOfRange),
    ("producer:commit", LastReceiptOnly),
    ("producer:slots", BySlot),
    ("producer:after-leaving", LateComesBack),
    ("producer:settled", WantsUsage),
    ("producer:undeclared", ReadsQueueUnsaid),
    ("assigner:one-each", Backwards()),
    ("assigner:candidates", OldStays()),
)
GOOD = (Good(), Counter, OneByOne())
