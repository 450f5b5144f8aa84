"""Who asks, may they, how much of it, and who hears of it?"""

from inferencesched.governance.finders import Keywords
from inferencesched.governance.guards import FinderGuard, GuardChain, Guarded, GuardStream, SizeGuard
from inferencesched.governance.identity import (
    Anonymous,
    ApiKeys,
    ClaimsIdentity,
    IdentityPolicy,
    KeyHolder,
    TrustingHeaders,
    agent_session,
    fairness_id,
)
from inferencesched.governance.meters import Identity, Meter
from inferencesched.governance.personal import PersonalData
from inferencesched.governance.quotas import MemoryQuotas, Quota, Quotas, QuotaStore
from inferencesched.governance.ratelimit import Limit, RateLimiter, RateRule
from inferencesched.governance.verdicts import ALLOW, Allow, Block, Context, Finder, Guard, Redact, Span, Verdict

__all__ = [
    "ALLOW",
    "Allow",
    "Anonymous",
    "ApiKeys",
    "Block",
    "ClaimsIdentity",
    "Context",
    "Finder",
    "FinderGuard",
    "Guard",
    "GuardChain",
    "GuardStream",
    "Guarded",
    "Identity",
    "IdentityPolicy",
    "KeyHolder",
    "Keywords",
    "Limit",
    "MemoryQuotas",
    "Meter",
    "PersonalData",
    "Quota",
    "QuotaStore",
    "Quotas",
    "RateLimiter",
    "RateRule",
    "Redact",
    "SizeGuard",
    "Span",
    "TrustingHeaders",
    "Verdict",
    "agent_session",
    "fairness_id",
]
