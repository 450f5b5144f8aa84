"""Session affinity, by the names of llm-d's router.

A filter or scorer by ``session_id`` needs a `SessionBindingProducer`, which llm-d's plug-ins have inside: it is made where none
is there, and those that ask for the same share it. llm-d's would each bind a session by itself, and could disagree.
"""

from typing import Final, Literal

import msgspec

from inferencesched.config.spec import Need, Parameters, PluginRef, PluginSpec, Workshop
from inferencesched.errors import InvalidInputError
from inferencesched.filters.session import SessionAffinityFilter
from inferencesched.framework import Filter
from inferencesched.producers.session import SessionBindingProducer
from inferencesched.scorers.session import SessionAffinityScorer
from inferencesched.sessions import (
    SESSION_HEADER,
    TOKEN_HEADER,
    BoundSession,
    EncodedEndpoint,
    SessionSource,
    SessionStrategy,
)
from inferencesched.signals import SESSION_BOUND, of_producer

PRODUCER_TYPE: Final = "session-binding-producer"
TTL: Final = 300.0
SWEEP: Final = 10.0


class SessionSourceParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``header`` or ``attribute``, exactly one; ``cookie`` is ours. ``producer``: who fills the attribute; a ``session-id-producer``
    of that name is asked itself.
    """

    header: str = ""
    attribute: str = ""
    cookie: str = ""
    producer: PluginRef = ""


class SessionIdParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``sources``: where the session is named, the header x-session-id if empty; ``evictionTtlSeconds`` and
    ``evictionSweepSeconds``: 300 and 10 if 0.
    """

    sources: tuple[SessionSourceParameters, ...] = ()
    eviction_ttl_seconds: float = TTL
    eviction_sweep_seconds: float = SWEEP


class TokenParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``header``: which header has the token, of requests and of responses."""

    header: str = TOKEN_HEADER


class SessionAffinityParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``strategy``: encoded_endpoint_header or session_id, each with a table of its own; ``profileName``: whose target counts."""

    strategy: Literal["", "encoded_endpoint_header", "session_id"] = "encoded_endpoint_header"
    encoded_endpoint_header_config: TokenParameters = TokenParameters()
    session_id_config: SessionIdParameters = SessionIdParameters()
    profile_name: str = ""
    binding_producer_name: str | None = None


class BindingParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """What binds sessions: ``sessionIdConfig`` and ``profileName`` as in llm-d; ``bindingName``: of the column, where there are
    several; ``filters``: who has to pass to count as a candidate; ``capacity``: most bindings.
    """

    session_id_config: SessionIdParameters = SessionIdParameters()
    profile_name: str = ""
    binding_name: str = ""
    filters: tuple[PluginRef, ...] = ()
    capacity: int = 1 << 20


class SessionIdProducerParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``headerName`` or ``cookieName``, exactly one: where the session is named."""

    header_name: str = ""
    cookie_name: str = ""


def binding_name(p: SessionAffinityParameters) -> str:
    """Under which name does the producer of these parameters fill its column? Equal parameters, equal names; none for the default.

    >>> binding_name(SessionAffinityParameters(strategy="session_id", profile_name="prefill"))
    'profile=prefill'
    """
    if p.binding_producer_name is not None:
        return p.binding_producer_name
    said = p.session_id_config
    words = [f"profile={p.profile_name}"] if p.profile_name else []
    for each in said.sources:
        words += [f"{place}={name}" for place, name in msgspec.structs.asdict(each).items() if name]
    if words == [f"header={SESSION_HEADER}"]:
        words = []
    for name, seconds, usual in (
        ("ttl", said.eviction_ttl_seconds, TTL),
        ("sweep", said.eviction_sweep_seconds, SWEEP),
    ):
        if seconds not in (0, usual):
            words.append(f"{name}={seconds:g}")
    return ",".join(words)


def checked(p: SessionIdParameters) -> SessionIdParameters:
    """Return the parameters; `InvalidInputError` for those of which nothing can be made."""
    for i, each in enumerate(p.sources):
        if sum(map(bool, (each.header, each.attribute, each.cookie))) != 1:
            said = {"header": each.header, "attribute": each.attribute} | (
                {"cookie": each.cookie} if each.cookie else {}
            )
            raise InvalidInputError(f"sessionIdConfig.sources[{i}]", said, "exactly one of header and attribute")
    for name, seconds in (
        ("evictionTtlSeconds", p.eviction_ttl_seconds),
        ("evictionSweepSeconds", p.eviction_sweep_seconds),
    ):
        if not seconds >= 0:
            raise InvalidInputError(f"sessionIdConfig.{name}", seconds, "seconds above 0, or 0 for the default")
    return p


def source_of(p: SessionSourceParameters, workshop: Workshop) -> SessionSource:
    """Return a source; a ``session-id-producer`` that is named is the source itself."""
    if p.producer:
        producer = workshop.plugin(p.producer)
        if isinstance(producer, SessionSource):
            return producer
    return SessionSource(p.header, p.cookie, p.attribute)


def strategy_of(p: SessionAffinityParameters) -> SessionStrategy:
    """Return the strategy that is asked for."""
    checked(p.session_id_config)
    if p.strategy == "session_id":
        return BoundSession(binding_name(p))
    return EncodedEndpoint(p.encoded_endpoint_header_config.header, p.profile_name)


def _needs(p: SessionAffinityParameters) -> tuple[Need, ...]:
    if p.strategy != "session_id":
        return ()
    name = binding_name(p)
    said = {
        "sessionIdConfig": msgspec.to_builtins(p.session_id_config),
        "profileName": p.profile_name,
        "bindingName": name,
    }
    return (Need(of_producer(SESSION_BOUND, name), PRODUCER_TYPE, said),)


def _told(strategy: SessionStrategy) -> SessionAffinityParameters:
    if isinstance(strategy, BoundSession):
        return SessionAffinityParameters(strategy="session_id", binding_producer_name=strategy.producer)
    if isinstance(strategy, EncodedEndpoint):
        header = TokenParameters(header=strategy.header)
        return SessionAffinityParameters(encoded_endpoint_header_config=header, profile_name=strategy.profile)
    raise InvalidInputError("strategy", strategy, "EncodedEndpoint or BoundSession: a configuration knows no other")


def _filter(p: SessionAffinityParameters, workshop: Workshop) -> SessionAffinityFilter:
    return SessionAffinityFilter(strategy_of(p))


def _read_filter(plugin: SessionAffinityFilter) -> SessionAffinityParameters:
    return _told(plugin.strategy)


def _scorer(p: SessionAffinityParameters, workshop: Workshop) -> SessionAffinityScorer:
    return SessionAffinityScorer(strategy_of(p))


def _read_scorer(plugin: SessionAffinityScorer) -> SessionAffinityParameters:
    return _told(plugin.strategy)


def _binding(p: BindingParameters, workshop: Workshop) -> SessionBindingProducer:
    said = checked(p.session_id_config)
    filters = tuple(_as_filter(name, workshop.plugin(name)) for name in p.filters)
    sources = tuple(source_of(each, workshop) for each in said.sources)
    return SessionBindingProducer(
        sources or (SessionSource(header=SESSION_HEADER),),
        profile=p.profile_name,
        ttl=said.eviction_ttl_seconds or TTL,
        sweep=said.eviction_sweep_seconds or SWEEP,
        name=p.binding_name,
        filters=filters,
        capacity=p.capacity,
    )


def _as_filter(name: str, plugin: object) -> Filter:
    if not isinstance(plugin, Filter):
        raise InvalidInputError("filters", name, "the names of filters")
    return plugin


def _read_binding(plugin: SessionBindingProducer) -> BindingParameters:
    sources = tuple(
        SessionSourceParameters(header=each.header, attribute=each.attribute, cookie=each.cookie)
        for each in plugin.sources
    )
    return BindingParameters(
        session_id_config=SessionIdParameters(
            sources=sources, eviction_ttl_seconds=plugin.ttl, eviction_sweep_seconds=plugin.sweep
        ),
        profile_name=plugin.profile,
        binding_name=plugin.name,
        capacity=plugin.capacity,
    )


def _session_id(p: SessionIdProducerParameters, workshop: Workshop) -> SessionSource:
    header, cookie = p.header_name.strip(), p.cookie_name.strip()
    if bool(header) == bool(cookie):
        said = {"headerName": p.header_name, "cookieName": p.cookie_name}
        raise InvalidInputError("headerName", said, "exactly one of headerName or cookieName")
    return SessionSource(header=header, cookie=cookie)


def _read_session_id(plugin: SessionSource) -> SessionIdProducerParameters:
    return SessionIdProducerParameters(header_name=plugin.header, cookie_name=plugin.cookie)


SPECS: Final = (
    PluginSpec(
        "session-affinity-filter",
        ("filter",),
        SessionAffinityParameters,
        _filter,
        SessionAffinityFilter,
        _read_filter,
        _needs,
        stability="alpha",
    ),
    PluginSpec(
        "multicluster-session-affinity-filter",
        ("filter",),
        SessionAffinityParameters,
        _filter,
        SessionAffinityFilter,
        _read_filter,
        _needs,
        stability="alpha",
    ),
    PluginSpec(
        "session-affinity-scorer",
        ("scorer",),
        SessionAffinityParameters,
        _scorer,
        SessionAffinityScorer,
        _read_scorer,
        _needs,
        stability="alpha",
    ),
    PluginSpec(
        PRODUCER_TYPE,
        ("producer",),
        BindingParameters,
        _binding,
        SessionBindingProducer,
        _read_binding,
        origin="own",
        parts=lambda plugin: {"filters": plugin.filters},
    ),
    PluginSpec(
        "session-id-producer",
        ("inert",),
        SessionIdProducerParameters,
        _session_id,
        SessionSource,
        _read_session_id,
    ),
)
