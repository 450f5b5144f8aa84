"""Which profiles run, and whose answer counts?"""

from inferencesched.handlers.single import SingleProfileHandler

__all__ = ["SingleProfileHandler"]
