"""Does my plug-in keep its contract?

``check_scorer(Mine())`` and its like run every check of a kind and raise the first `CheckFailure`; `all_checks_of` yields
them one by one, so that a test runner can name each::

    @pytest.mark.parametrize("check", all_checks_of(Mine()), ids=str)
    def test_contract(check):
        check()

Contract, not quality: a scorer that passes may still send everything to one server. For that there is
`inferencesched.simulator.compare`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

from inferencesched.endpoints import Signal
from inferencesched.framework import Assigner, DataProducer, Filter, Picker, ProfileHandler, Scorer
from inferencesched.testing._assigning import ASSIGNER_CHECKS, DECIDER_CHECKS, Assigning, Decides, Deciding
from inferencesched.testing._calls import columns_for
from inferencesched.testing._frozen import VALUE_CHECKS, declared
from inferencesched.testing._handling import HANDLER_CHECKS, Handling, ProfileHandling, profiles_of
from inferencesched.testing._judging import FILTER_CHECKS, SCORER_CHECKS, Subject
from inferencesched.testing._picking import PICKER_CHECKS, Choice
from inferencesched.testing._producing import PRODUCER_CHECKS, Making
from inferencesched.testing.failure import Check, CheckedKind
from inferencesched.testing.scenes import Scene, scenes


@runtime_checkable
class _Filters(Protocol):
    def filter(self, *arguments: Any) -> Any: ...


@runtime_checkable
class _Scores(Protocol):
    def score(self, *arguments: Any) -> Any: ...


@runtime_checkable
class _Picks(Protocol):
    def pick(self, *arguments: Any) -> Any: ...


@runtime_checkable
class _Produces(Protocol):
    def produce(self, *arguments: Any) -> Any: ...
    def commit(self, *arguments: Any, now: float) -> None: ...


@runtime_checkable
class _Assigns(Protocol):
    def assign(self, *arguments: Any) -> Any: ...


@runtime_checkable
class _Decides(Protocol):
    def decide(self, *arguments: Any) -> Any: ...


def kinds_of(plugin: object) -> tuple[CheckedKind, ...]:
    """What is it, by the methods it has? A plug-in may be of several kinds; an object without any of them is of none.

    >>> from inferencesched import QueueScorer
    >>> kinds_of(QueueScorer())
    ('scorer',)
    """
    found: list[CheckedKind] = []
    if isinstance(plugin, _Filters):
        found.append("filter")
    if isinstance(plugin, _Scores):
        found.append("scorer")
    if isinstance(plugin, ProfileHandling):
        found.append("profile-handler")
    elif isinstance(plugin, _Picks):
        found.append("picker")
    if isinstance(plugin, _Produces):
        found.append("producer")
    if isinstance(plugin, _Assigns):
        found.append("assigner")
    if isinstance(plugin, _Decides):
        found.append("decider")
    return tuple(found)


def all_checks_of(
    plugin: object,
    *,
    kinds: Sequence[CheckedKind] = (),
    signals: Sequence[Signal] = (),
    more: Sequence[Scene] = (),
    profiles: Sequence[str] = (),
) -> Iterator[Check]:
    """Which checks are there for this plug-in? Call each by itself, or `check_scorer` and its like for all at once.

    Of a producer, which has state, give what makes a new one: ``lambda: Mine(size=4)``, or the class. `kinds` is what to
    check it as; left out, what its methods say (`kinds_of`). `signals` are columns that it reads and does not declare in
    `Reader.reads`. `more` are scenes beside the standard ones (`inferencesched.testing.scenes`), for what only your plug-in
    looks at. `profiles` are those that a handler works with; left out, its parameters that are called ``..profile..``.

    >>> from inferencesched import QueueScorer
    >>> [check.name for check in all_checks_of(QueueScorer())][:3]
    ['frozen', 'equality', 'pickle']
    """
    if isinstance(plugin, type) or (callable(plugin) and not kinds_of(plugin)):
        make = cast(Callable[[], Any], plugin)
        sample = make()
    else:
        make, sample = partial(_itself, plugin), plugin
    label = repr(sample)
    pool = (*scenes(columns_for(sample, signals)), *more)
    for kind in kinds or kinds_of(sample):
        yield from _checks(kind, sample, make, label, pool, tuple(profiles))


def _checks(
    kind: CheckedKind,
    plugin: Any,
    make: Callable[[], Any],
    label: str,
    pool: tuple[Scene, ...],
    profiles: tuple[str, ...],
) -> Iterator[Check]:
    if kind == "producer":
        yield Check(kind, "reads", label, partial(_run, declared, plugin))
        yield from _bound(kind, label, PRODUCER_CHECKS, Making(make, pool))
        return
    if "producer" not in kinds_of(plugin):  # a producer has state, whatever else it is
        yield from _bound(kind, label, VALUE_CHECKS, plugin)
    if kind == "filter":
        yield from _bound(kind, label, FILTER_CHECKS, Subject(plugin, "filter", pool))
    elif kind == "scorer":
        yield from _bound(kind, label, SCORER_CHECKS, Subject(plugin, "score", pool))
    elif kind == "picker":
        yield from _bound(kind, label, PICKER_CHECKS, Choice(plugin, pool))
    elif kind == "profile-handler":
        yield from _bound(kind, label, HANDLER_CHECKS, Handling(plugin, profiles or profiles_of(plugin), pool))
    elif kind == "assigner":
        yield from _bound(kind, label, ASSIGNER_CHECKS, Assigning(plugin, pool))
    else:
        yield from _bound(kind, label, DECIDER_CHECKS, Deciding(plugin, pool))


def _bound(kind: CheckedKind, label: str, table: Any, subject: object) -> Iterator[Check]:
    for name, run in table.items():
        yield Check(kind, name, label, partial(_run, run, subject))


def _run(check: Callable[[Check, Any], None], subject: Any, itself: Check) -> None:
    check(itself, subject)


def _itself(plugin: Any) -> Any:
    return plugin


def _all(plugin: object, kind: CheckedKind, **options: Any) -> None:
    for check in all_checks_of(plugin, kinds=(kind,), **options):
        check()


def check_filter(plugin: Filter, *, signals: Sequence[Signal] = (), more: Sequence[Scene] = ()) -> None:
    """Does this filter keep its contract? `CheckFailure` where it does not; see `all_checks_of` for the parameters.

    Frozen value; bool[E]; inputs unchanged; no memory; chance from the cycle only; the same in any order and in what other
    filters left; one endpoint; nothing known; monotone where `Reader.reads` says so; nothing read that is not declared.
    """
    _all(plugin, "filter", signals=signals, more=more)


def check_scorer(plugin: Scorer, *, signals: Sequence[Signal] = (), more: Sequence[Scene] = ()) -> None:
    """Does this scorer keep its contract? `CheckFailure` where it does not; see `all_checks_of` for the parameters.

    All that `check_filter` asks, with float64[E] in [0, 1] and never NaN; and 0 wherever a `PartialScorer` has no word.

    >>> from inferencesched import KV_CACHE_USAGE, KvCacheUtilizationScorer
    >>> check_scorer(KvCacheUtilizationScorer())
    >>> class Usage:
    ...     def score(self, request, endpoints, cycle):
    ...         return 1.0 - endpoints[KV_CACHE_USAGE]
    ...     def __repr__(self):
    ...         return "Usage()"
    >>> for check in all_checks_of(Usage()):
    ...     if check.name == "nan":
    ...         check()
    Traceback (most recent call last):
    ...
    inferencesched.testing.failure.CheckFailure: Usage() fails scorer:nan
      done:    score() of 7 endpoints, scene 'some unknown, known-length'
      got:     NaN for 'ep-...'
      allowed: a number: 0 where the scorer has no word
    """
    _all(plugin, "scorer", signals=signals, more=more)


def check_picker(plugin: Picker, *, signals: Sequence[Signal] = (), more: Sequence[Scene] = ()) -> None:
    """Does this picker keep its contract? `CheckFailure` where it does not; see `all_checks_of` for the parameters.

    Frozen value; distinct positions, intp, at least one; inputs unchanged; no cursor; chance from the cycle only; the same in
    any order where there is no tie, no draw and no turn; a better total never costs the pick.
    """
    _all(plugin, "picker", signals=signals, more=more)


def check_profile_handler(plugin: ProfileHandler, *, profiles: Sequence[str] = (), more: Sequence[Scene] = ()) -> None:
    """Does this handler keep its contract? `CheckFailure` where it does not; see `all_checks_of` for the parameters.

    Frozen value; asks for profiles that exist and comes to an end, whichever of them fail; its primary ran; no memory.
    """
    _all(plugin, "profile-handler", profiles=profiles, more=more)


def check_producer(
    make: Callable[[], DataProducer[Any]], *, signals: Sequence[Signal] = (), more: Sequence[Scene] = ()
) -> None:
    """Does this producer keep its contract? `CheckFailure` where it does not; see `all_checks_of` for the parameters.

    Give it what makes a new producer. Columns as declared; `produce` changes nothing; commits in any order, and after the
    endpoint left; a slot's past is not its new owner's; every ending is taken by an `OutcomeListener`.
    """
    _all(make, "producer", signals=signals, more=more)


def check_assigner(plugin: Assigner, *, signals: Sequence[Signal] = (), more: Sequence[Scene] = ()) -> None:
    """Does this assigner keep its contract? `CheckFailure` where it does not; see `all_checks_of` for the parameters.

    Frozen value; a result for each request, in order; targets are candidates; no memory; chance from the cycle only.
    """
    _all(plugin, "assigner", signals=signals, more=more)


def check_decider(plugin: Decides, *, signals: Sequence[Signal] = (), more: Sequence[Scene] = ()) -> None:
    """Does this decider keep its contract? `CheckFailure` where it does not; see `all_checks_of` for the parameters.

    Frozen value; True or False, with a target and without; inputs unchanged; no memory; chance from the cycle only.
    """
    _all(plugin, "decider", signals=signals, more=more)
