"""Do the checks of `inferencesched.testing` see what they are for, and nothing else?"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import inferencesched as isched
from inferencesched.framework import Reads
from inferencesched.testing import (
    CheckFailure,
    all_checks_of,
    check_assigner,
    check_filter,
    check_picker,
    check_producer,
    check_profile_handler,
    check_scorer,
    kinds_of,
    scenes,
)
from inferencesched.testing.scenes import NOW
from tests.broken import BROKEN, GOOD, LENGTH, Counter, Good, value


def label(case):
    name, plugin = case
    return f"{name}-{plugin.__name__ if isinstance(plugin, type) else type(plugin).__name__}"


@pytest.mark.parametrize("case", BROKEN, ids=label)
def test_every_fault_is_seen_by_its_check(case):
    name, plugin = case
    (check,) = [check for check in all_checks_of(plugin) if str(check) == name]
    with pytest.raises(CheckFailure) as caught:
        check()
    failure = caught.value
    assert failure.check == name and failure.done and failure.got and failure.allowed
    assert str(failure).startswith(f"{failure.plugin} fails {name}\n")


@pytest.mark.parametrize("plugin", GOOD, ids=lambda p: p.__name__ if isinstance(p, type) else type(p).__name__)
def test_nothing_is_held_against_a_good_one(plugin):
    for check in all_checks_of(plugin):
        check()


def test_every_check_has_a_fault_that_it_sees():
    """A check that nothing in the table makes fail may be one that cannot fail."""
    samples = (*(plugin for _, plugin in BROKEN), *GOOD, isched.SingleProfileHandler(), isched.MaxScorePicker())
    every = {str(check) for plugin in samples for check in all_checks_of(plugin)}
    seen = {name for name, _ in BROKEN}
    by_both = {name.partition(":")[2] for name in seen}
    # a value is checked alike whatever it does; filters and scorers share their checks
    assert {name for name in every - seen if name.partition(":")[2] not in by_both} == set()
    assert seen <= every


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (check_scorer, isched.QueueScorer(), "scorer:"),
        (check_filter, isched.UtilizationFilter(((isched.WAITING_QUEUE_SIZE, 5.0),)), "filter:"),
        (check_picker, isched.MaxScorePicker(2), "picker:"),
        (check_profile_handler, isched.SingleProfileHandler(), "profile-handler:"),
        (check_producer, Counter, "producer:"),
        (check_assigner, GOOD[-1], "assigner:"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_the_whole_list_at_once(check, good, bad):
    assert check(good) is None
    plugin = next(plugin for name, plugin in BROKEN if name.startswith(bad))
    with pytest.raises(CheckFailure, match=bad):
        check(plugin)


def test_what_a_plugin_is():
    assert kinds_of(isched.QueueScorer()) == ("scorer",)
    assert kinds_of(isched.MaxScorePicker()) == ("picker",)
    assert kinds_of(isched.SingleProfileHandler()) == ("profile-handler",)
    assert kinds_of(Counter()) == ("producer",)
    assert kinds_of(SimpleNamespace(filter=len, score=len)) == ("filter", "scorer")
    assert kinds_of(object()) == ()
    assert list(all_checks_of(object())) == []


@value
class ByLength:
    def score(self, request, endpoints, cycle):
        return 1.0 / (1.0 + isched.known(endpoints[LENGTH]))


@value
class DeclaredLength(ByLength):
    reads = (Reads(LENGTH, "lower"),)


def test_columns_of_ones_own():
    """Declared ones are in the pools by themselves, others by word."""
    check_scorer(DeclaredLength())
    check_scorer(ByLength(), signals=(LENGTH,))
    with pytest.raises(CheckFailure, match="UnknownNameError: signal: got 'own_length'"):
        check_scorer(ByLength())


def test_scenes_of_ones_own():
    """What only one's own plug-in looks at: here, a label that no standard scene has."""

    @value
    class Blessed:
        def filter(self, request, endpoints, cycle):
            mask = endpoints.label("blessed", "yes")
            return mask if not mask.any() else mask.astype(np.int64)

    check_filter_of = {str(check): check for check in all_checks_of(Blessed())}
    check_filter_of["filter:dtype"]()
    scene = scenes()[0]
    blessed = replace(scene, servers=tuple(replace(server, labels={"blessed": "yes"}) for server in scene.servers))
    with pytest.raises(CheckFailure, match="int64"):
        {str(check): check for check in all_checks_of(Blessed(), more=(blessed,))}["filter:dtype"]()


def test_a_factory_is_called_for_each_check():
    made = []

    def make():
        made.append(Counter())
        return made[-1]

    checks = list(all_checks_of(make))
    assert len(made) == 1
    before = len(made)
    checks[-2]()
    assert len(made) > before


def test_scenes_are_what_they_are_called():
    found = {scene.name.partition(",")[0]: scene for scene in scenes()}
    assert np.isnan(found["all unknown"].endpoints()[isched.WAITING_QUEUE_SIZE]).all()
    assert not np.isnan(found["all unknown"].endpoints()[isched.INFLIGHT_REQUESTS]).any()
    assert (found["never observed"].endpoints().age(NOW) == np.inf).all()
    assert len(found["one endpoint"].endpoints()) == 1
    left = found["what filters left"].endpoints()
    assert len(left) == 5 < len(left.members.names) and left.names == found["what filters left"].names
    alone = found["what filters left"].alone().endpoints()
    assert alone.positions is None and np.array_equal(alone.matrix, left.matrix, equal_nan=True)
    assert np.array_equal(alone.slots, left.slots) and [alone.labels(i) for i in range(5)] == [
        left.labels(i) for i in range(5)
    ]
    turned = found["usual"].reordered([6, 5, 4, 3, 2, 1, 0]).endpoints()
    assert np.array_equal(turned.matrix[:, ::-1], found["usual"].endpoints().matrix, equal_nan=True)
    assert np.array_equal(turned.hosts("a")[::-1], found["usual"].endpoints().hosts("a"))


def test_scenes_hold_values_that_their_signals_allow():
    for scene in scenes((LENGTH,)):
        endpoints = scene.endpoints()
        for signal in scene.signals:
            column = endpoints[signal]
            known = column[~np.isnan(column)]
            assert (known >= signal.low).all() and (known <= signal.high).all(), (scene.name, signal)


def test_a_label_is_one_line_and_equal_for_equals():
    one, other = (list(all_checks_of(Good())) for _ in range(2))
    assert one == other and str(one[0]) == "scorer:frozen" and one[0].plugin == "Good()"
