"""How near are two endpoints? Their labels tell: same host, rack, zone or region.

Whoever compares two places asks for the nearest level at which both have the same name. A level without a name on either side
is nobody's: two empty racks are not one rack.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, get_args

import numpy as np

from inferencesched._typing import IndexArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.request import InferenceRequest

Level = Literal["hostname", "rack", "zone", "region"]
Affinity = Literal["host", "rack", "zone", "region"]

#: Which label holds each level, nearest first: the well-known ones of Kubernetes.
LABELS: Final[Mapping[Level, str]] = MappingProxyType(
    {
        "hostname": "kubernetes.io/hostname",
        "rack": "topology.kubernetes.io/rack",
        "zone": "topology.kubernetes.io/zone",
        "region": "topology.kubernetes.io/region",
    }
)
#: How near two endpoints may be, nearest first; behind them, "none".
AFFINITIES: Final[tuple[Affinity, ...]] = get_args(Affinity)
NO_AFFINITY: Final = len(AFFINITIES)


@dataclass(frozen=True, slots=True)
class TopologyLabels:
    """Under which label does an endpoint name its host, rack, zone and region?

    The defaults are the well-known labels of Kubernetes, and those of llm-d's ``topology-extractor``.
    """

    hostname: str = LABELS["hostname"]
    rack: str = LABELS["rack"]
    zone: str = LABELS["zone"]
    region: str = LABELS["region"]

    def __post_init__(self) -> None:
        for field, key in zip(fields(self), self.keys, strict=True):
            if not key:
                raise InvalidInputError(field.name, key, "the key of a label")

    @property
    def keys(self) -> tuple[str, str, str, str]:
        """Which keys, nearest level first?"""
        return (self.hostname, self.rack, self.zone, self.region)


class Place(NamedTuple):
    """Where is an endpoint? Empty is unknown.

    >>> Place.read("host=h1,zone=z1,shelf=3")
    Place(hostname='h1', rack='', zone='z1', region='')
    """

    hostname: str = ""
    rack: str = ""
    zone: str = ""
    region: str = ""

    @classmethod
    def read(cls, text: str) -> "Place":
        """Return what a header says, as in ``host=h1,rack=r1``; words that nobody knows are left out."""
        said = dict(pair.split("=", 1) for pair in text.split(",") if "=" in pair)
        return cls(*(said.get(word, "") for word in AFFINITIES))

    def text(self) -> str:
        """Return it as the header that `read` reads; a name with ``,`` or ``=`` in it cannot be told, and is left out."""
        named = zip(AFFINITIES, self, strict=True)
        return ",".join(f"{word}={name}" for word, name in named if name and not set(name) & {",", "="})


def affinity(word: str) -> Affinity:
    """Return the level that a configuration names; `UnknownNameError` for another word.

    >>> affinity("rack")
    'rack'
    """
    for known in AFFINITIES:
        if word == known:
            return known
    raise UnknownNameError("min_affinity", word, AFFINITIES)


def place_of(endpoints: Endpoints, name: str, labels: TopologyLabels) -> Place:
    """Return where a member of the pool is, a candidate or not; nowhere, for a name that is not in it."""
    position = endpoints.members.positions.get(name)
    if position is None:
        return Place()
    said = endpoints.members.labels[position]
    return Place(*(said.get(key, "") for key in labels.keys))


def peer_of(
    request: InferenceRequest, endpoints: Endpoints, peer: str, labels: TopologyLabels, peer_header: str
) -> Place:
    """Return where the endpoint of an earlier stage is: by its labels, else by what a request header says of it."""
    place = place_of(endpoints, peer, labels) if peer else Place()
    if peer_header and not any(place):
        place = Place.read(request.headers.get(peer_header, ""))
    return place


def affinities(endpoints: Endpoints, peer: Place, labels: TopologyLabels) -> IndexArray:
    """How near is each candidate to a place, ``intp[E]``? 0 the same host, 1 rack, 2 zone, 3 region, 4 none of them.

    The nearest level with the same name counts, whatever the others say. Cost: a comparison a level that the peer names.
    """
    nearest = np.full(len(endpoints), NO_AFFINITY, dtype=np.intp)
    for rank in reversed(range(NO_AFFINITY)):
        if name := peer[rank]:
            values, codes = endpoints.label_column(labels.keys[rank])
            if name in values:
                nearest[codes == values.index(name)] = rank
    return nearest
