"""Where is a server, as one word and as two?

An address is ``host:port``. A host that is an IPv6 address has brackets round it there, and none by itself: ``[fd00::1]:8000``
is ``fd00::1`` and ``8000``. An address may lack its port, and a name of any kind may stand for the host.
"""

from typing import NamedTuple

from inferencesched.errors import InvalidInputError


class HostPort(NamedTuple):
    """Which host, and which port of it? The port is empty where none was given."""

    host: str
    port: str


def split_address(address: str) -> HostPort:
    """Return host and port of an address; `InvalidInputError` where brackets do not match.

    >>> split_address("10.0.0.1:8000")
    HostPort(host='10.0.0.1', port='8000')
    >>> split_address("[fd00::1]:8000")
    HostPort(host='fd00::1', port='8000')
    >>> split_address("fd00::1")
    HostPort(host='fd00::1', port='')
    """
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidInputError("address", address, "host:port, an IPv6 host in brackets")
        return HostPort(host, rest[1:])
    if address.count(":") > 1:  # an IPv6 host by itself
        return HostPort(address, "")
    host, _, port = address.partition(":")
    return HostPort(host, port)


def join_address(host: str, port: str | int) -> str:
    """Return one word for a host and a port; an empty port is left out.

    >>> join_address("fd00::1", 8000)
    '[fd00::1]:8000'
    >>> join_address("ep-3", "")
    'ep-3'
    """
    if port == "":
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def with_port(address: str, port: int) -> str:
    """Return the same host at another port.

    >>> with_port("10.0.0.1:8003", 8000)
    '10.0.0.1:8000'
    """
    return join_address(split_address(address).host, port)
