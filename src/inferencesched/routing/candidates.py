"""Whom does the proxy allow?

An Envoy proxy may name a subset in its metadata (``envoy.lb.subset_hint``, `headers.SUBSET`): ``host`` or ``host:port``. Source:
llm-d-router, the director's candidates, and the endpoint picker protocol.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from inferencesched._typing import BoolArray
from inferencesched.endpoints import Endpoints


def host_of(address: str) -> str:
    """Return an address without its port.

    >>> host_of("10.0.0.1:8080"), host_of("[::1]:80"), host_of("::1"), host_of("pod")
    ('10.0.0.1', '[::1]', '::1', 'pod')
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and (":" not in host or host.endswith("]")):
        return host
    return address


def within(endpoints: Endpoints, subset: Collection[Any]) -> BoolArray:
    """Return who is in the subset, ``bool[E]``: by address, by host, or by name. An empty subset is nobody.

    What is no string is passed over, as the reference does; a host without a port is all of its endpoints, and one with a port is
    the endpoints of that host too (the reference compares hosts only).

    >>> from inferencesched.pool import InferencePool
    >>> pool = InferencePool()
    >>> for i in (1, 2):
    ...     pool.join(f"ep-{i}", address=f"10.0.0.{i}:8000")
    >>> within(pool.snapshot(), ["10.0.0.2:8080", 7]).tolist()
    [False, True]
    """
    said = {each for each in subset if isinstance(each, str)}
    hosts = {host_of(each) for each in said}
    return np.array(
        [host_of(endpoints.address(i)) in hosts or name in said for i, name in enumerate(endpoints.names)],
        dtype=np.bool_,
    )
