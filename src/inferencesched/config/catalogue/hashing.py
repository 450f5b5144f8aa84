"""Filters and scorers that keep a key's requests together, by hashing."""

from inferencesched.config.spec import Parameters, PluginSpec, Workshop
from inferencesched.filters.hashing import BoundedLoadFilter, RendezvousFilter
from inferencesched.placement import KeySource, RequestKey
from inferencesched.scorers.hashing import BoundedLoadScorer, RendezvousScorer


class RendezvousParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``key``: by what requests are kept together, ``headerName`` where that is ``header``, ``prefixBlocks`` or ``prefixTokens``
    where it is ``prefix``; ``replicas``: how many endpoints share a key; ``weighted``: whether capacities count.
    """

    key: KeySource = "session"
    header_name: str = ""
    prefix_blocks: int = 1
    prefix_tokens: int = 256
    replicas: int = 1
    weighted: bool = True


class BoundedLoadParameters(RendezvousParameters, frozen=True, kw_only=True, rename="camel"):
    """Those of rendezvous, and ``balance``: how much above its share an endpoint may carry."""

    balance: float = 0.25


def _key(p: RendezvousParameters) -> RequestKey:
    return RequestKey(p.key, p.header_name.strip().lower(), p.prefix_blocks, p.prefix_tokens)


def _rendezvous_filter(p: RendezvousParameters, workshop: Workshop) -> RendezvousFilter:
    return RendezvousFilter(_key(p), p.replicas, p.weighted)


def _rendezvous_scorer(p: RendezvousParameters, workshop: Workshop) -> RendezvousScorer:
    return RendezvousScorer(_key(p), p.replicas, p.weighted)


def _bounded_filter(p: BoundedLoadParameters, workshop: Workshop) -> BoundedLoadFilter:
    return BoundedLoadFilter(_key(p), p.balance, p.replicas, p.weighted)


def _bounded_scorer(p: BoundedLoadParameters, workshop: Workshop) -> BoundedLoadScorer:
    return BoundedLoadScorer(_key(p), p.balance, p.replicas, p.weighted)


def _read(plugin: RendezvousFilter | RendezvousScorer) -> RendezvousParameters:
    key = plugin.key
    return RendezvousParameters(
        key=key.source,
        header_name=key.header,
        prefix_blocks=key.blocks,
        prefix_tokens=key.tokens,
        replicas=plugin.replicas,
        weighted=plugin.weighted,
    )


def _read_bounded(plugin: BoundedLoadFilter | BoundedLoadScorer) -> BoundedLoadParameters:
    key = plugin.key
    return BoundedLoadParameters(
        key=key.source,
        header_name=key.header,
        prefix_blocks=key.blocks,
        prefix_tokens=key.tokens,
        replicas=plugin.replicas,
        weighted=plugin.weighted,
        balance=plugin.balance,
    )


SPECS = (
    PluginSpec(
        "rendezvous-filter",
        ("filter",),
        RendezvousParameters,
        _rendezvous_filter,
        RendezvousFilter,
        _read,
        origin="own",
    ),
    PluginSpec(
        "rendezvous-scorer",
        ("scorer",),
        RendezvousParameters,
        _rendezvous_scorer,
        RendezvousScorer,
        _read,
        origin="own",
    ),
    PluginSpec(
        "bounded-load-filter",
        ("filter",),
        BoundedLoadParameters,
        _bounded_filter,
        BoundedLoadFilter,
        _read_bounded,
        origin="own",
    ),
    PluginSpec(
        "bounded-load-scorer",
        ("scorer",),
        BoundedLoadParameters,
        _bounded_scorer,
        BoundedLoadScorer,
        _read_bounded,
        origin="own",
    ),
)
