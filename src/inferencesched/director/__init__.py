"""May this request go, when, and to which server? All parts of the library, joined."""

from inferencesched.director.aio import AsyncDirector
from inferencesched.director.decision import FORWARDED, Decision, Mirrored, Waiting
from inferencesched.director.director import Director
from inferencesched.director.life import RequestLife
from inferencesched.director.stages import FailurePolicy, Identifies, Retries, ServingPool

__all__ = [
    "FORWARDED",
    "AsyncDirector",
    "Decision",
    "Director",
    "FailurePolicy",
    "Identifies",
    "Mirrored",
    "RequestLife",
    "Retries",
    "ServingPool",
    "Waiting",
]
