"""Which servers do the work of which stage, and whom could one request go to?

A pool in which some servers compute prompts and others tokens is as full as its fullest stage. A request that is bound to
some of the servers is kept waiting by those, and by no others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np

from inferencesched._typing import BoolArray
from inferencesched.endpoints import LORA_CAPACITY, Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.request import InferenceRequest

Part = Literal["prefill", "decode", "interleaved"]

#: The label that says what a server does in a disaggregated pool.
STAGE_LABEL: Final = "llm-d.ai/role"
#: Which of its values belong to which part; ``interleaved`` does both. A server without the label, or with an empty one, decodes.
PARTS: Final[Mapping[str, Part]] = MappingProxyType(
    {
        "prefill": "prefill",
        "encode-prefill": "prefill",
        "decode": "decode",
        "": "decode",
        "prefill-decode": "interleaved",
        "both": "interleaved",
        "encode-prefill-decode": "interleaved",
    }
)
#: In which request header a proxy says whom the request may go to.
SUBSET_HEADER: Final = "x-gateway-destination-endpoint-subset"


class StageParts(NamedTuple):
    """Who prefills, who decodes, who does both? ``bool[E]`` each; who does neither (``encode``, unknown roles) is in none."""

    prefill: BoolArray
    decode: BoolArray
    interleaved: BoolArray


@dataclass(frozen=True, slots=True)
class Stages:
    """Into which stages does a label divide a pool?

    Reads labels only, which are never stale. Source: llm-d router's ``partitionEndpoints`` and stage-aware gating.

    >>> from inferencesched.pool import InferencePool
    >>> pool = InferencePool()
    >>> for name, role in (("a", "prefill"), ("b", "both"), ("c", "encode")):
    ...     pool.join(name, labels={STAGE_LABEL: role})
    >>> [stage.tolist() for stage in Stages().of(pool.snapshot())]
    [[True, True, False], [False, True, False]]
    """

    label: str = STAGE_LABEL

    def __post_init__(self) -> None:
        if not self.label:
            raise InvalidInputError("label", self.label, "the key of a label")

    def parts(self, endpoints: Endpoints) -> StageParts:
        """Return who is in which part."""
        column = endpoints.label_column(self.label)
        of_value = [*(PARTS.get(value) for value in column.values), PARTS[""]]
        tables = ([part == name for part in of_value] for name in StageParts._fields)
        return StageParts(*(np.array(table, dtype=np.bool_)[column.codes] for table in tables))

    def of(self, endpoints: Endpoints) -> tuple[BoolArray, ...]:
        """Return who takes part in each stage that anybody does, prefill first; everybody, where nobody does any."""
        prefill, decode, interleaved = self.parts(endpoints)
        stages = tuple(stage for stage in (prefill | interleaved, decode | interleaved) if stage.any())
        return stages or (np.ones(len(endpoints), dtype=np.bool_),)


class Reach(Protocol):
    """Whom could a request go to?"""

    def of(self, request: InferenceRequest, endpoints: Endpoints) -> BoolArray | None:
        """Return ``bool[E]``; None for everybody."""
        ...


@dataclass(frozen=True, slots=True)
class RequestReach:
    """Whom could a request go to, by what it says itself?

    Parameters
    ----------
    subset_header: names addresses, hosts or endpoints, with commas between them. Empty asks for none.
    labels: pairs of a request header and a label: where the header says something, the label must say the same.
    adapters: a request for a LoRA adapter that some server has can go to those, and to servers with room for one more
        (fewer adapters in use than ``LORA_CAPACITY``, where that is known). An adapter that no server has can go anywhere.
    model_label: the label that names a server's model; where any server names the request's, it goes to those.

    A condition that nobody meets restricts nothing: whether such a request can be served is the scheduler's to say, and it
    had better say so than let the request wait for servers that will not come. Reads labels, addresses (static), and LoRA
    residency (scraped).
    """

    subset_header: str = SUBSET_HEADER
    labels: tuple[tuple[str, str], ...] = ()
    adapters: bool = True
    model_label: str = ""

    def __post_init__(self) -> None:
        for header, label in self.labels:
            if not header or header != header.lower() or not label:
                raise InvalidInputError("labels", (header, label), "a header in lower case and the key of a label")

    def of(self, request: InferenceRequest, endpoints: Endpoints) -> BoolArray | None:
        """Return ``bool[E]``; None for everybody. Cost: linear in the endpoints where the subset header is there."""
        reach: BoolArray | None = None
        for mask in self._conditions(request, endpoints):
            if mask.any() and not mask.all():
                reach = mask if reach is None else reach & mask
        return reach if reach is not None and reach.any() else None

    def _conditions(self, request: InferenceRequest, endpoints: Endpoints) -> list[BoolArray]:
        found = []
        said = request.headers.get(self.subset_header, "") if self.subset_header else ""
        if said:
            found.append(_named(said, endpoints))
        for header, label in self.labels:
            if value := request.headers.get(header, ""):
                found.append(endpoints.label(label, value))
        if self.model_label and request.model:
            found.append(endpoints.label(self.model_label, request.model))
        if self.adapters and request.adapter_name:
            name = request.adapter_name
            resident = endpoints.hosts(name) | endpoints.awaits(name) | endpoints.loaded(name)
            if resident.any():
                found.append(resident | (endpoints.adapters_in_use < endpoints[LORA_CAPACITY]))
        return found


def _named(said: str, endpoints: Endpoints) -> BoolArray:
    """Return which endpoints a list of addresses, hosts or names means."""
    wanted = {word.strip() for word in said.split(",")} - {""}
    hosts = {word.rpartition(":")[0] for word in wanted} - {""}
    found = np.zeros(len(endpoints), dtype=np.bool_)
    for i, name in enumerate(endpoints.names):
        address = endpoints.address(i)
        host = address.rpartition(":")[0]
        found[i] = not wanted.isdisjoint((name, address, host or address)) or (not host and address in hosts)
    return found
