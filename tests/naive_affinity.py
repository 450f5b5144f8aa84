"""Labels, places, context lengths and attributes, one endpoint a time: as slow as the rules read."""

import math

ROLES = {
    "decode": {"decode", "prefill-decode", "both", "encode-prefill-decode"},
    "prefill": {"prefill", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode"},
    "encode": {"encode", "encode-prefill", "encode-prefill-decode"},
}


def plays(role, labels):
    if "llm-d.ai/role" not in labels:
        return role == "decode"
    return labels["llm-d.ai/role"] in ROLES[role]


def labelled(labels, key, values, allow_missing):
    return labels.get(key, "") in values or (key not in labels and allow_missing)


def selected(labels, match_labels, expressions):
    """Kubernetes: every pair and every (key, operator, values) holds."""
    for key, value in match_labels.items():
        if key not in labels or labels[key] != value:
            return False
    for key, operator, values in expressions:
        if operator == "In" and (key not in labels or labels[key] not in values):
            return False
        if operator == "NotIn" and key in labels and labels[key] in values:
            return False
        if operator == "Exists" and key not in labels:
            return False
        if operator == "DoesNotExist" and key in labels:
            return False
    return True


def nearness(peer, candidate):
    """Return the nearest level at which two places, dicts of the four levels, have the same name."""
    for name, level in (("host", "hostname"), ("rack", "rack"), ("zone", "zone"), ("region", "region")):
        if peer.get(level) and peer.get(level) == candidate.get(level):
            return name
    return "none"


def context_score(low, high, length):
    if low <= length <= high:
        width = high - low
        if width == 0:
            return 1.0
        raw = 0.7 * (1.0 / (1.0 + width / 10000.0)) + 0.3 * ((high - length) / width)
        return 0.3 + raw * 0.7
    distance = length - high if length > high else low - length
    return 0.3 / (1.0 + distance / 1000.0)


def attribute_scores(values, better, fixed):
    """Return the score of each value; None is unknown."""
    known = [value for value in values if value is not None]
    low, high = fixed or (min(known, default=math.inf), max(known, default=-math.inf))
    scores = []
    for value in values:
        if value is None:
            scores.append(0.0)
        elif fixed is None and low == high:
            scores.append(1.0)
        else:
            place = min(1.0, max(0.0, (value - low) / (high - low)))
            scores.append(1.0 - place if better == "lower" else place)
    return scores


class Sessions:
    """What binds sessions, as a list of (session, endpoint, used) in which everything is looked up from the front."""

    def __init__(self, ttl):
        self.ttl = ttl
        self.bindings = []

    def bound(self, session, now):
        for name, endpoint, used in self.bindings:
            if name == session and not now - used > self.ttl:
                return endpoint
        return ""

    def kept(self, session, seen, picked, now, bound_when_seen):
        """A decision was kept: `seen` were its candidates, and the session was bound to `bound_when_seen` then."""
        bound = self.bound(session, now)
        absent = bound_when_seen != "" and bound_when_seen not in seen
        if bound in ("", picked) or absent:
            self.bindings = [each for each in self.bindings if each[0] != session]
            self.bindings.append((session, picked, now))
