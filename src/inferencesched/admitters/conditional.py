"""May a request that only wants what is cached go?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from inferencesched.framework import Denial, SchedulingResult
from inferencesched.request import InferenceRequest

_IF_AVAILABLE: Final = "if-available"


def prefers(headers: Mapping[str, str], preference: str) -> bool:
    """Return whether the ``Prefer`` header names a preference. Source: RFC 7240: names without regard to case, between commas.

    >>> prefers({"prefer": "wait=10, If-Available"}, "if-available")
    True
    """
    return any(
        each.partition(";")[0].partition("=")[0].strip().lower() == preference
        for each in headers.get("prefer", "").split(",")
    )


def has_cached_prefix(result: SchedulingResult) -> bool:
    """Return whether the primary target holds any of the prompt, as far as is known: less is to be computed than the prompt is long."""
    profile = result.profiles.get(result.primary)
    if profile is None or not profile.targets:
        return False
    prompt = result.request.prompt_tokens
    return prompt is not None and profile.targets[0].tokens < prompt


@dataclass(frozen=True, slots=True)
class ConditionalDecode:
    """May a request with ``Prefer: if-available`` go? Only to a server that has some of its prompt: else 412, and its client asks elsewhere.

    Source: llm-d router, the director's conditional decode.
    """

    def before_request(self, request: InferenceRequest, result: SchedulingResult) -> Denial | None:
        """Return why not, or None."""
        if not prefers(request.headers, _IF_AVAILABLE) or has_cached_prefix(result):
            return None
        return Denial("nothing of its prompt is cached", status=412)
