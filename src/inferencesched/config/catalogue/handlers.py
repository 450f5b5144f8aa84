"""Profile handlers and deciders, by the names of llm-d's router; the joint choice of two servers is ours.

A disaggregated handler's parameters have two spellings: nested (``profiles``, ``deciders``), and the older flat one. A
configuration uses one of them; what is written is always nested.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from inferencesched.config.catalogue.topology import LabelsParameters
from inferencesched.config.spec import Need, Nothing, Parameters, PluginRef, PluginSpec, Workshop
from inferencesched.endpoints import PREFIX_TOKENS
from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.handlers.data_parallel import DataParallelProfileHandler
from inferencesched.handlers.deciders import (
    AlwaysDecider,
    DisaggregationDecider,
    MultimodalDecider,
    PrefixBasedDecider,
)
from inferencesched.handlers.disaggregated import DisaggProfileHandler, StageOrder
from inferencesched.handlers.header import HeaderProfileHandler
from inferencesched.handlers.joint import JointDisaggHandler, TopologyPairs
from inferencesched.handlers.single import SingleProfileHandler
from inferencesched.handlers.stages import DisaggHeaders, StageNames
from inferencesched.signals import of_producer
from inferencesched.topology import TopologyLabels

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


# -- one profile ----------------------------------------------------------------------------------


class HeaderParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``headerName``: in any case, with space round it; ``defaultProfile``: where the header is missing. Blank is the default."""

    header_name: str = "EPP-Profile"
    default_profile: str = "decode"


def _header(parameters: HeaderParameters, workshop: Workshop) -> HeaderProfileHandler:
    default = HeaderProfileHandler()
    return HeaderProfileHandler(
        parameters.header_name.strip().lower() or default.header_name,
        parameters.default_profile.strip() or default.default_profile,
    )


class DataParallelParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``primaryPort``: the port that all ranks share."""

    primary_port: Port = 8000


# -- stages ---------------------------------------------------------------------------------------


class StageProfiles(Parameters, frozen=True, kw_only=True, rename="camel"):
    """Which profile chooses for which stage? Empty is the default."""

    decode: str = "decode"
    prefill: str = "prefill"
    encode: str = "encode"


class StageDeciders(Parameters, frozen=True, kw_only=True, rename="camel"):
    """Which plug-in decides for which stage? Without one the stage does not run."""

    prefill: PluginRef | None = None
    encode: PluginRef | None = None


class DisaggParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``stageOrder``: ``decode-first`` or ``prefill-first``, in any case, with or without the dash; the rest is nested, or flat.

    ``primaryPort`` is ours here: llm-d has it in ``pd-profile-handler`` only. 0 leaves decode's addresses as they are.
    """

    profiles: StageProfiles | None = None
    deciders: StageDeciders | None = None
    stage_order: str = "decode-first"
    primary_port: Port = 0
    decode_profile: str | None = None
    prefill_profile: str | None = None
    encode_profile: str | None = None
    prefill_decider_plugin_name: PluginRef | None = None
    decider_plugin_name: PluginRef | None = None
    encode_decider_plugin_name: PluginRef | None = None


def nested(parameters: DisaggParameters) -> tuple[StageProfiles, StageDeciders]:
    """Return the parameters in the nested spelling; `InvalidInputError` where both are used."""
    flat = {
        "decodeProfile": parameters.decode_profile,
        "prefillProfile": parameters.prefill_profile,
        "encodeProfile": parameters.encode_profile,
        "prefillDeciderPluginName": parameters.prefill_decider_plugin_name,
        "deciderPluginName": parameters.decider_plugin_name,
        "encodeDeciderPluginName": parameters.encode_decider_plugin_name,
    }
    used = {name: value for name, value in flat.items() if value is not None}
    if not used:
        return parameters.profiles or StageProfiles(), parameters.deciders or StageDeciders()
    if parameters.profiles is not None or parameters.deciders is not None:
        (name, value), newer = next(iter(used.items())), "profiles" if parameters.profiles is not None else "deciders"
        raise InvalidInputError(name, value, f"either the flat keys or the nested ones, and {newer} is nested")
    prefill, older = parameters.prefill_decider_plugin_name, parameters.decider_plugin_name
    if prefill is not None and older is not None and prefill != older:
        raise InvalidInputError("deciderPluginName", older, f"what prefillDeciderPluginName says, {prefill!r}")
    profiles = StageProfiles(
        decode=parameters.decode_profile or "",
        prefill=parameters.prefill_profile or "",
        encode=parameters.encode_profile or "",
    )
    encode = parameters.encode_decider_plugin_name
    return profiles, StageDeciders(prefill=older if prefill is None else prefill, encode=encode)


def stage_order(said: str) -> StageOrder:
    """Return which order is meant, however it is written; `UnknownNameError` for another word.

    >>> stage_order("PrefillFirst")
    'prefill-first'
    """
    orders: dict[str, StageOrder] = {"decodefirst": "decode-first", "prefillfirst": "prefill-first"}
    order = orders.get(said.strip().lower().replace("-", "") or "decodefirst")
    if order is None:
        raise UnknownNameError("stageOrder", said, list(orders.values()))
    return order


def _names(profiles: StageProfiles) -> StageNames:
    return StageNames(profiles.decode or "decode", profiles.prefill or "prefill", profiles.encode or "encode")


def _profiles(names: StageNames) -> StageProfiles:
    return StageProfiles(decode=names.decode, prefill=names.prefill, encode=names.encode)


def _decider(workshop: Workshop, path: str, name: str | None) -> DisaggregationDecider | None:
    """Return the decider of that name; `InvalidInputError` for a plug-in that is none."""
    if not name:
        return None
    decider = workshop.plugin(name)
    if not isinstance(decider, DisaggregationDecider):
        raise InvalidInputError(path, name, "the name of a decider")
    return decider


def _disagg(parameters: DisaggParameters, workshop: Workshop) -> DisaggProfileHandler:
    profiles, deciders = nested(parameters)
    order = stage_order(parameters.stage_order)
    if order == "prefill-first" and deciders.prefill:
        allowed = "none: with stageOrder prefill-first, prefill always runs"
        raise InvalidInputError("deciders.prefill", deciders.prefill, allowed)
    return DisaggProfileHandler(
        _names(profiles),
        _decider(workshop, "deciders.prefill", deciders.prefill),
        _decider(workshop, "deciders.encode", deciders.encode),
        order,
        parameters.primary_port,
    )


def _read_disagg(handler: DisaggProfileHandler) -> DisaggParameters:
    names, port = handler.profiles, handler.primary_port
    return DisaggParameters(profiles=_profiles(names), stage_order=handler.stage_order, primary_port=port)


def _deciders(handler: DisaggProfileHandler) -> Mapping[str, object]:
    return {"deciders.prefill": handler.prefill_decider, "deciders.encode": handler.encode_decider}


class PdParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``primaryPort``: 0 leaves decode's addresses as they are; ``prefixPluginName``: not read, as in llm-d."""

    decode_profile: str = "decode"
    prefill_profile: str = "prefill"
    decider_plugin_name: PluginRef = "prefix-based-pd-decider"
    prefix_plugin_name: str = ""
    primary_port: Port = 0


def _pd(parameters: PdParameters, workshop: Workshop) -> DisaggProfileHandler:
    name = parameters.decider_plugin_name
    decider = _decider(workshop, "deciderPluginName", name)
    if decider is None:
        raise InvalidInputError("deciderPluginName", name, "the name of a decider")
    names = _names(StageProfiles(decode=parameters.decode_profile, prefill=parameters.prefill_profile))
    return DisaggProfileHandler(names, decider, primary_port=parameters.primary_port)


def _read_pd(handler: DisaggProfileHandler) -> PdParameters:
    if handler.encode_decider is not None or handler.prefill_decider is None or handler.stage_order != "decode-first":
        raise InvalidInputError("handler", handler, "prefill and decode only, decode first, with a decider")
    names, port = handler.profiles, handler.primary_port
    return PdParameters(decode_profile=names.decode, prefill_profile=names.prefill, primary_port=port)


class TransferScores(Parameters, frozen=True, kw_only=True, rename="camel"):
    """What is each level worth that a prefill and a decode server share?"""

    host: Share = 1.0
    rack: Share = 0.2
    zone: Share = 0.05
    region: Share = 0.02


class JointParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``deciders.prefill``: without one, prefill always runs; the weights multiply both profiles' totals and the transfer's score.

    ``labels`` says which label tells each level.
    """

    profiles: StageProfiles = StageProfiles()
    deciders: StageDeciders = StageDeciders()
    primary_port: Port = 0
    prefill_weight: float = 1.0
    decode_weight: float = 1.0
    transfer_weight: float = 1.0
    transfer_scores: TransferScores = TransferScores()
    labels: LabelsParameters = LabelsParameters()


def _joint(parameters: JointParameters, workshop: Workshop) -> JointDisaggHandler:
    prefill = _decider(workshop, "deciders.prefill", parameters.deciders.prefill) or AlwaysDecider()
    encode = _decider(workshop, "deciders.encode", parameters.deciders.encode)
    worth, keys = parameters.transfer_scores, parameters.labels
    labels = TopologyLabels(keys.hostname, keys.rack, keys.zone, keys.region)
    return JointDisaggHandler(
        DisaggProfileHandler(_names(parameters.profiles), prefill, encode, primary_port=parameters.primary_port),
        TopologyPairs(worth.host, worth.rack, worth.zone, worth.region, labels),
        parameters.prefill_weight,
        parameters.decode_weight,
        parameters.transfer_weight,
    )


def _read_joint(handler: JointDisaggHandler) -> JointParameters:
    worth = handler.transfer
    if not isinstance(worth, TopologyPairs):
        raise InvalidInputError("transfer", worth, "TopologyPairs: a configuration has no name for another")
    keys = worth.labels
    return JointParameters(
        profiles=_profiles(handler.stages.profiles),
        primary_port=handler.stages.primary_port,
        prefill_weight=handler.prefill_weight,
        decode_weight=handler.decode_weight,
        transfer_weight=handler.transfer_weight,
        transfer_scores=TransferScores(host=worth.host, rack=worth.rack, zone=worth.zone, region=worth.region),
        labels=LabelsParameters(hostname=keys.hostname, rack=keys.rack, zone=keys.zone, region=keys.region),
    )


class HeadersParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``prefillProfile`` and ``encodeProfile``: whose targets the headers name. Empty is the default."""

    prefill_profile: str = "prefill"
    encode_profile: str = "encode"


def _headers(parameters: HeadersParameters, workshop: Workshop) -> DisaggHeaders:
    return DisaggHeaders(parameters.prefill_profile or "prefill", parameters.encode_profile or "encode")


def _read_headers(headers: DisaggHeaders) -> HeadersParameters:
    return HeadersParameters(prefill_profile=headers.prefill_profile, encode_profile=headers.encode_profile)


# -- deciders -------------------------------------------------------------------------------------


class PrefixBasedParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``nonCachedTokens``: from how many tokens left to compute; ``promptTokens``: from how long a prompt.

    ``prefixMatchInfoProducerName`` is ours: whose match is read, where there are several producers of it.
    """

    non_cached_tokens: Count = 0
    prompt_tokens: Count = 0
    prefix_match_info_producer_name: str = ""


def _prefix_based(parameters: PrefixBasedParameters, workshop: Workshop) -> PrefixBasedDecider:
    producer = parameters.prefix_match_info_producer_name
    return PrefixBasedDecider(parameters.non_cached_tokens, parameters.prompt_tokens, producer)


def _read_prefix_based(decider: PrefixBasedDecider) -> PrefixBasedParameters:
    return PrefixBasedParameters(
        non_cached_tokens=decider.non_cached_tokens,
        prompt_tokens=decider.prompt_tokens,
        prefix_match_info_producer_name=decider.producer,
    )


SPECS = (
    PluginSpec(
        "single-profile-handler",
        ("profile-handler",),
        Nothing,
        lambda p, w: SingleProfileHandler(),
        SingleProfileHandler,
        lambda h: Nothing(),
    ),
    PluginSpec(
        "header-profile-handler",
        ("profile-handler",),
        HeaderParameters,
        _header,
        HeaderProfileHandler,
        lambda h: HeaderParameters(header_name=h.header_name, default_profile=h.default_profile),
        stability="alpha",
    ),
    PluginSpec(
        "data-parallel-profile-handler",
        ("profile-handler",),
        DataParallelParameters,
        lambda p, w: DataParallelProfileHandler(p.primary_port),
        DataParallelProfileHandler,
        lambda h: DataParallelParameters(primary_port=h.primary_port),
        stability="deprecated",
        instead="single-profile-handler",
    ),
    PluginSpec(
        "disagg-profile-handler",
        ("profile-handler",),
        DisaggParameters,
        _disagg,
        DisaggProfileHandler,
        _read_disagg,
        parts=_deciders,
    ),
    PluginSpec(
        "pd-profile-handler",
        ("profile-handler",),
        PdParameters,
        _pd,
        None,
        _read_pd,
        stability="deprecated",
        instead="disagg-profile-handler",
        parts=lambda h: {"deciderPluginName": h.prefill_decider},
    ),
    PluginSpec(
        "joint-disagg-profile-handler",
        ("profile-handler",),
        JointParameters,
        _joint,
        JointDisaggHandler,
        _read_joint,
        origin="own",
        parts=lambda h: _deciders(h.stages),
    ),
    PluginSpec("disagg-headers-handler", ("stage",), HeadersParameters, _headers, DisaggHeaders, _read_headers),
    PluginSpec(
        "prefill-header-handler",
        ("stage",),
        HeadersParameters,
        _headers,
        None,
        _read_headers,
        stability="deprecated",
        instead="disagg-headers-handler",
    ),
    PluginSpec(
        "always-disagg-pd-decider",
        ("decider",),
        Nothing,
        lambda p, w: AlwaysDecider(),
        AlwaysDecider,
        lambda d: Nothing(),
    ),
    PluginSpec(
        "always-disagg-multimodal-decider",
        ("decider",),
        Nothing,
        lambda p, w: MultimodalDecider(),
        MultimodalDecider,
        lambda d: Nothing(),
    ),
    PluginSpec(
        "prefix-based-pd-decider",
        ("decider",),
        PrefixBasedParameters,
        _prefix_based,
        PrefixBasedDecider,
        _read_prefix_based,
        lambda p: (
            Need(of_producer(PREFIX_TOKENS, p.prefix_match_info_producer_name), "approx-prefix-cache-producer"),
        ),
    ),
)
