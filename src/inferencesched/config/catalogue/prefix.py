"""The prefix producers, by the names of llm-d's router; their parameters are those of `inferencesched.prefix.parameters`.

An index here has one block size: that of the parameters, at least llm-d's floor of 64 tokens for the approximate one. llm-d takes that
of the first endpoint's cache under ``autoTune``, which makes no difference up to 64. Capacities are each endpoint's own.
"""

from typing import Final

from inferencesched.config.spec import Demand, PluginSpec, Workshop
from inferencesched.endpoints import Signal
from inferencesched.errors import InvalidInputError
from inferencesched.prefix.hashing import SEED
from inferencesched.prefix.kv_records import Tier
from inferencesched.prefix.parameters import (
    ApproximateParameters,
    BackendParameters,
    IndexerParameters,
    PreciseParameters,
    TokenProcessorParameters,
)
from inferencesched.prefix.precise import PrecisePrefixProducer
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.signals import CACHED_BLOCKS, READABLE_BLOCKS

#: llm-d's word for each tier.
_MEDIA: Final = {Tier.DEVICE: "gpu", Tier.HOST: "cpu", Tier.DISK: "disk", Tier.EXTERNAL: "external"}


def approximate(parameters: ApproximateParameters, workshop: Workshop) -> ApproximatePrefixProducer:
    """Return the producer that an llm-d configuration describes."""
    size = parameters.tokens_per_block()
    most = parameters.max_blocks(size)
    if most == 0:
        value, allowed = parameters.max_prefix_tokens_to_match, f"0, or at least a block of {size} tokens"
        raise InvalidInputError("maxPrefixTokensToMatch", value, allowed)
    return ApproximatePrefixProducer(
        block_size=size,
        capacity=parameters.capacity(),
        automatic=parameters.auto_tune,
        max_blocks=most,
        count_blocks=_counted(workshop),
    )


def read_approximate(producer: ApproximatePrefixProducer) -> ApproximateParameters:
    """Return the parameters that describe a producer; `InvalidInputError` for one that llm-d cannot have."""
    if producer.index.capacity is None:
        raise InvalidInputError("capacity", None, "a number of blocks: llm-d's index is always bounded")
    if producer.ttl is not None:
        raise InvalidInputError("ttl", producer.ttl, "None: llm-d forgets by number, not by time")
    if producer.block_size != ApproximateParameters(block_size_tokens=producer.block_size).tokens_per_block():
        raise InvalidInputError("block_size", producer.block_size, "at least 64, llm-d's floor")
    most = producer.max_blocks
    return ApproximateParameters(
        auto_tune=producer.automatic,
        block_size_tokens=producer.block_size,
        max_prefix_tokens_to_match=0 if most is None else most * producer.block_size,
        max_prefix_blocks_to_match=0 if most is None else 2048,
        lru_capacity_per_server=producer.index.capacity,
    )


def _precise(parameters: PreciseParameters, workshop: Workshop) -> PrecisePrefixProducer:
    tokens = parameters.token_processor_config
    return PrecisePrefixProducer(
        block_size=tokens.tokens_per_block,
        seed=tokens.seed,
        weights=parameters.indexer_config.weights,
        speculative_ttl=parameters.ttl if parameters.speculative_indexing else None,
        count_blocks=_counted(workshop),
        settings=parameters,
    )


def _read_precise(producer: PrecisePrefixProducer) -> PreciseParameters:
    """Return the parameters that a producer was made from, or those that describe it."""
    if producer.settings is not None:
        return producer.settings
    if producer.seed != SEED:
        raise InvalidInputError("seed", producer.seed, f"{SEED}: a configuration names a seed in words")
    for name, value in (("model", producer.model), ("tenant", producer.tenant), ("max_blocks", producer.max_blocks)):
        if value:
            raise InvalidInputError(name, value, "nothing: a configuration cannot say it")
    backends = tuple(
        BackendParameters(name=_MEDIA[tier], weight=float(weight)) for tier, weight in producer.weights.items()
    )
    return PreciseParameters(
        token_processor_config=TokenProcessorParameters(block_size_tokens=producer.block_size),
        indexer_config=IndexerParameters(kv_cache_backend_configs=backends),
        speculative_indexing=producer.speculative_ttl is not None,
        speculative_ttl="" if producer.speculative_ttl is None else f"{producer.speculative_ttl}s",
    )


def _counted(workshop: Workshop) -> bool:
    """Does anybody in the configuration ask for numbers of blocks?"""
    asked: tuple[Signal, ...] = (CACHED_BLOCKS, READABLE_BLOCKS)
    return isinstance(workshop, Demand) and any(workshop.wanted(signal) for signal in asked)


SPECS = (
    PluginSpec(
        "approx-prefix-cache-producer",
        ("producer",),
        ApproximateParameters,
        approximate,
        ApproximatePrefixProducer,
        read_approximate,
    ),
    PluginSpec(
        "precise-prefix-cache-producer",
        ("producer",),
        PreciseParameters,
        _precise,
        PrecisePrefixProducer,
        _read_precise,
    ),
)
