"""Whom may a request go to at all, before anything is known of load?"""

from inferencesched.screeners.rollout import RolloutScreener
from inferencesched.screeners.subset import SubsetScreener

__all__ = ["RolloutScreener", "SubsetScreener"]
