"""Which endpoints does a request ask for by their addresses?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from inferencesched._typing import BoolArray, IndexArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Reads
from inferencesched.request import InferenceRequest

SELECTION_HEADER: Final = "test-epp-endpoint-selection"


def host_and_port(address: str) -> tuple[str, str]:
    """Return both parts of an address; the port is empty where there is none, and IPv6 loses its brackets.

    >>> host_and_port("[fd00::1]:3002"), host_and_port("10.0.0.1"), host_and_port("fd00::1")
    (('fd00::1', '3002'), ('10.0.0.1', ''), ('fd00::1', ''))
    """
    address = address.strip()
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        return host, rest[1:] if rest.startswith(":") else ""
    host, _, port = address.partition(":")
    return (address, "") if ":" in port else (host, port)


@dataclass(frozen=True, slots=True)
class HeaderEndpointFilter:
    """Does the request ask for this endpoint by its address? For tests of a gateway: it obeys the client.

    A header names addresses, ``ip`` or ``ip:port``, with commas between them; a port that is named must be the endpoint's. Each ip
    counts once, for the first that names it; of several endpoints on one ip, a name without a port means the last.
    Nobody is kept without the header. `order` tells whom in which order, the filter whom. Reads addresses, which are never stale.
    Source: llm-d router's ``header-based-testing-filter``.

    >>> from inferencesched import InferencePool, InferenceRequest
    >>> pool = InferencePool()
    >>> pool.join("a", address="10.0.0.1:80"); pool.join("b", address="10.0.0.2:80")
    >>> request = InferenceRequest(request_id="r", headers={"test-epp-endpoint-selection": "10.0.0.2, 10.0.0.1:80"})
    >>> HeaderEndpointFilter().order(request, pool.snapshot()).tolist()
    [1, 0]
    """

    header: str = SELECTION_HEADER

    def __post_init__(self) -> None:
        if not self.header:
            raise InvalidInputError("header", self.header, "the name of a header")
        object.__setattr__(self, "header", self.header.lower())

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? None: addresses."""
        return ()

    def order(self, request: InferenceRequest, endpoints: Endpoints) -> IndexArray:
        """Return the positions asked for, in the header's order, ``intp[k]``."""
        return np.array(list(self._asked(request, endpoints)), dtype=np.intp)

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``."""
        keep: BoolArray = np.zeros(len(endpoints), dtype=np.bool_)
        keep[self.order(request, endpoints)] = True
        return keep

    def _asked(self, request: InferenceRequest, endpoints: Endpoints) -> Iterator[int]:
        asked = [each for each in request.headers.get(self.header, "").split(",") if each.strip()]
        if not asked:
            return
        places: dict[tuple[str, str], int] = {}
        for position in range(len(endpoints)):
            host, port = host_and_port(endpoints.address(position))
            places[host, ""] = position
            places[host, port] = position
        seen = set()
        for each in asked:
            host, port = host_and_port(each)
            position = places.get((host, port), -1)
            if position >= 0 and host not in seen:
                seen.add(host)
                yield position
