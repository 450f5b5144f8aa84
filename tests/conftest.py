"""How do property tests draw their examples?

``ci``, the default: the same examples every run, so that a red run is red again, and no deadline, since a busy machine
and a first compile are not bugs. ``search`` looks for new ones: ``HYPOTHESIS_PROFILE=search make test``. ``long`` is twenty
times ``ci``: ``make check-long``.
"""

import os

import pytest
from hypothesis import settings

settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("search", deadline=None, max_examples=2_000, print_blob=True)
settings.register_profile("long", deadline=None, derandomize=True, max_examples=2_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test whose name holds an address: processes that share the work could not tell which test is meant."""
    addressed = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if addressed:
        raise pytest.UsageError(f"named by where an object lies: {addressed[0]}")
