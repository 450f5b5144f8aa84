"""What is told of a request that goes, and of one that does not?"""

from typing import Final

import msgspec

from inferencesched.director.decision import FORWARDED, Decision, Mirrored
from inferencesched.director.life import RequestLife
from inferencesched.director.way import Way
from inferencesched.errors import RequestRefusedError
from inferencesched.framework import SchedulingResult
from inferencesched.routing.headers import DESTINATION, FAIRNESS_ID, MODEL_NAME, OBJECTIVE, REQUEST_ID, aliases

#: What a client may say to the gateway and no server needs to hear.
STRIPPED: Final = tuple(name for each in (OBJECTIVE, FAIRNESS_ID) for name in aliases(each))


def forwarded(way: Way, life: RequestLife, result: SchedulingResult, mirrors: tuple[Mirrored, ...]) -> Decision:
    """Return the decision that a request goes, with what its server should hear."""
    target = result.target
    profile = result.profiles[result.primary]
    assert profile is not None  # it has a target
    fallbacks = tuple(each.address for each in profile.targets[1:])
    headers = {
        DESTINATION: ",".join((target.address, *fallbacks)) if fallbacks else target.address,
        REQUEST_ID: way.request_id,
        MODEL_NAME: way.choice.target,
    }
    for name in STRIPPED:
        if name in way.headers:
            headers[name] = ""
    if way.match is not None and way.match.set_headers:
        headers.update(way.match.set_headers)
    if result.headers:
        headers.update(result.headers)
    return Decision(
        request_id=way.request_id,
        status=200,
        outcome=FORWARDED,
        headers=headers,
        pool=way.lane.name,
        endpoint=target.endpoint,
        address=target.address,
        fallbacks=fallbacks,
        body=way.upstream,
        mirrors=mirrors,
        request=way.request,
        result=result,
        life=life,
        trail=tuple(way.trail),
    )


def refusal_body(word: str, message: str) -> bytes:
    """Return what a refusal's body says, in the shape of OpenAI's API.

    >>> refusal_body("unrouted", "no such model")
    b'{"error":{"message":"no such model","type":"unrouted","code":"unrouted"}}'
    """
    return msgspec.json.encode({"error": {"message": message, "type": word, "code": word}})


def refused(way: Way, error: RequestRefusedError) -> Decision:
    """Return the decision that a request does not go, with what its client should hear."""
    return Decision(
        request_id=way.request_id,
        status=error.status,
        outcome=error.outcome,
        headers=error.headers,
        error=error,
        trail=tuple(way.trail),
    )
