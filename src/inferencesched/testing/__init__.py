"""How do I test a plug-in of my own? Checks of every kind's contract, and strategies for property tests.

`checks` needs nothing but the library; `strategies` needs hypothesis (extra ``testing``) and is imported by itself.
"""

from inferencesched.testing.checks import (
    all_checks_of,
    check_assigner,
    check_decider,
    check_filter,
    check_picker,
    check_producer,
    check_profile_handler,
    check_scorer,
    kinds_of,
)
from inferencesched.testing.failure import Check, CheckFailure
from inferencesched.testing.scenes import Scene, Server, scenes

__all__ = [
    "Check",
    "CheckFailure",
    "Scene",
    "Server",
    "all_checks_of",
    "check_assigner",
    "check_decider",
    "check_filter",
    "check_picker",
    "check_producer",
    "check_profile_handler",
    "check_scorer",
    "kinds_of",
    "scenes",
]
