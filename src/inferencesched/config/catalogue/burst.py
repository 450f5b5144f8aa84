"""Bursts, by the name of llm-d's router, as a plan that scorers read; and by ours, as a decision (``burst-assigner``).

llm-d's producer holds requests back for ``windowDurationMs`` itself. Here that is the gateway's to do: the number is kept as
`BurstPrefixProducer.window`, and `BurstPrefixProducer.plan` is told of the requests that were gathered.
"""

from typing import Final, Literal

from inferencesched.assigners.burst import BurstAssigner
from inferencesched.config.spec import Parameters, PluginSpec, Workshop
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.producers.burst import BurstPrefixProducer

_MAX_BLOCKS: Final = 2048
_UNLIMITED: Final = -1


class BurstParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``maxPerReplica``: requests of one prompt an endpoint takes, -1 for all. ``minColocateBlocks``: what prompts share to be kept
    together, 0 for all of it. ``balanceBy``: what load is. ``blockSizeTokens``, ``maxPrefixTokensToMatch`` (0 for 2,048 blocks): how
    prompts are compared.
    """

    max_per_replica: int = _UNLIMITED
    block_size_tokens: int = 64
    max_prefix_tokens_to_match: int = 0
    min_colocate_blocks: int = 0
    balance_by: Literal["", "requests", "tokens"] = "requests"


class BurstProducerParameters(BurstParameters, frozen=True, kw_only=True, rename="camel"):
    """As `BurstParameters`; ``windowDurationMs``, 1 to 10,000: how long the caller gathers. ``maxBatchSize``: most requests a plan."""

    window_duration_ms: int = 100
    max_batch_size: int = 1000


def assigner(parameters: BurstParameters) -> BurstAssigner:
    """Return what the parameters say of how a burst is put together."""
    cap, size = parameters.max_per_replica, parameters.block_size_tokens
    if cap != _UNLIMITED and cap < 1:
        raise InvalidInputError("maxPerReplica", cap, "-1 for unlimited, or an integer of at least 1")
    whole_number("blockSizeTokens", size, low=1)
    tokens = whole_number("maxPrefixTokensToMatch", parameters.max_prefix_tokens_to_match)
    if 0 < tokens < size:
        raise InvalidInputError("maxPrefixTokensToMatch", tokens, f"0, or at least a block of {size} tokens")
    return BurstAssigner(
        max_per_replica=None if cap == _UNLIMITED else cap,
        min_colocate_blocks=whole_number("minColocateBlocks", parameters.min_colocate_blocks),
        balance_by=parameters.balance_by or "requests",
        block_size=size,
        max_blocks=tokens // size or _MAX_BLOCKS,
    )


def _read_assigner(made: BurstAssigner) -> BurstParameters:
    return BurstParameters(
        max_per_replica=_UNLIMITED if made.max_per_replica is None else made.max_per_replica,
        block_size_tokens=made.block_size,
        max_prefix_tokens_to_match=0 if made.max_blocks == _MAX_BLOCKS else made.max_blocks * made.block_size,
        min_colocate_blocks=made.min_colocate_blocks,
        balance_by=made.balance_by,
    )


def _producer(parameters: BurstProducerParameters, workshop: Workshop) -> BurstPrefixProducer:
    window = parameters.window_duration_ms
    if not 1 <= window <= 10_000:
        raise InvalidInputError("windowDurationMs", window, "1 to 10000")
    size = whole_number("maxBatchSize", parameters.max_batch_size, low=1)
    return BurstPrefixProducer(assigner(parameters), window=window / 1000, max_batch_size=size)


def _read_producer(producer: BurstPrefixProducer) -> BurstProducerParameters:
    made = _read_assigner(producer.assigner)
    return BurstProducerParameters(
        max_per_replica=made.max_per_replica,
        block_size_tokens=made.block_size_tokens,
        max_prefix_tokens_to_match=made.max_prefix_tokens_to_match,
        min_colocate_blocks=made.min_colocate_blocks,
        balance_by=made.balance_by,
        window_duration_ms=round(producer.window * 1000),
        max_batch_size=producer.max_batch_size,
    )


SPECS = (
    PluginSpec(
        "burst-prefix-cache-producer",
        ("producer",),
        BurstProducerParameters,
        _producer,
        BurstPrefixProducer,
        _read_producer,
        stability="alpha",
    ),
    PluginSpec(
        "burst-assigner",
        ("assigner",),
        BurstParameters,
        lambda p, w: assigner(p),
        BurstAssigner,
        _read_assigner,
        origin="own",
    ),
)
