"""Why this endpoint?

`explain` walks the same stages as `Scheduler.schedule`, the plain way, and writes down what it sees: who was dropped by
what and why, every scorer's word on every candidate, what was read and how old it was, the runner-up, the margin, the rule that
decided, and what would have flipped it. `decide` decides with notes: its result explains itself.
"""

from inferencesched.explain.record import Change, Drop, Explanation, Reading
from inferencesched.explain.walk import ExplainedDecision, decide, explain

__all__ = ["Change", "Drop", "ExplainedDecision", "Explanation", "Reading", "decide", "explain"]
