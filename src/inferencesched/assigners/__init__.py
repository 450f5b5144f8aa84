"""Who gets which of several requests, seen together? One file a family."""

from inferencesched.assigners.burst import BurstAssigner

__all__ = ["BurstAssigner"]
