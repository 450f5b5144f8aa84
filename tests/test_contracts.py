"""Does every plug-in of the library keep the contract of its kind?

One test for each check of each example. A new plug-in gets its examples in `tests/examples.py`.
"""

from itertools import chain

import pytest

from inferencesched.config.catalogue import CATALOGUE
from inferencesched.framework import Reader
from inferencesched.testing import CheckFailure, all_checks_of, kinds_of
from tests.examples import EXAMPLES, exported, kinds_of_class, plugin_classes

MADE = [
    pytest.param(make, id=f"{name}-{i}") for name, makes in sorted(EXAMPLES.items()) for i, make in enumerate(makes)
]


def test_every_plugin_has_an_example():
    catalogue = (spec.made for spec in CATALOGUE if spec.made is not None and kinds_of_class(spec.made))
    names = {thing.__name__ for thing in chain(plugin_classes(), exported(), catalogue)}
    assert len(names) > 50
    assert sorted(names - EXAMPLES.keys()) == [], "give each an example in tests/examples.py"


def test_every_example_is_of_a_plugin():
    for name, makes in EXAMPLES.items():
        for make in makes:
            assert type(make()).__name__ == name and kinds_of(make()), name


@pytest.mark.parametrize("make", MADE)
def test_it_keeps_its_contract(make):
    failures = []
    for check in all_checks_of(make):
        try:
            check()
        except CheckFailure as failure:
            failures.append(str(failure))
    assert failures == []


@pytest.mark.parametrize("make", MADE)
def test_it_says_what_it_reads(make):
    plugin = make()
    if {"filter", "scorer"} & set(kinds_of(plugin)):
        assert isinstance(plugin, Reader)
