"""What can an engine say of its KV cache?

The events of all engines in one form: who reads them off the wire is `inferencesched.prefix.kv_wire` (vLLM, SGLang) and
`inferencesched.prefix.kv_trtllm`.
"""

import enum
from typing import Final, TypeAlias

import msgspec

from inferencesched.errors import KVEventError

#: What an engine hashes besides tokens: a salt, an adapter's name, (identifier, offset) of a picture, a digest.
ExtraKey: TypeAlias = "str | int | float | bytes | tuple[str | int | float | bytes | None, ...] | None"


class Tier(enum.IntFlag):
    """Where does a block lie? Flags, since one block may lie in several places."""

    DEVICE = 1
    HOST = 2
    DISK = 4
    EXTERNAL = 8


#: Dynamo's table (lib/kv-router, `StorageTier`).
_MEDIA: Final = {
    **dict.fromkeys(("GPU", "DEVICE"), Tier.DEVICE),
    **dict.fromkeys(("CPU", "CPU_PINNED", "CPU_TIER1"), Tier.HOST),
    **dict.fromkeys(("CPU_TIER2", "DISK", "NVME", "STORAGE"), Tier.DISK),
    **dict.fromkeys(("EXTERNAL", "NETWORK", "REMOTE", "SHARED"), Tier.EXTERNAL),
}


def tier_of(medium: str | None) -> Tier | None:
    """Which tier does an engine mean? None where the word is unknown: it is not guessed.

    Letters may be small or capital. An engine that names no medium, None or "", has only the one: the device.

    >>> tier_of("GPU"), tier_of("cpu_pinned"), tier_of(None), tier_of("drum memory")
    (<Tier.DEVICE: 1>, <Tier.HOST: 2>, <Tier.DEVICE: 1>, None)
    """
    return _MEDIA.get(medium.upper()) if medium else Tier.DEVICE


class BlockStored(msgspec.Struct, frozen=True, kw_only=True):
    """Which blocks does the engine hold from now on, and what is in them?

    `block_hashes` are the engine's own, as uint64: opaque. ``token_ids`` are those of all blocks, ``block_size`` each;
    without any, blocks known already lie in one more `medium`. ``parent_block_hash`` is the block before the first,
    None at the beginning of a prompt. ``extra_keys`` are, for each block, what else the engine hashed.
    """

    block_hashes: tuple[int, ...]
    parent_block_hash: int | None = None
    token_ids: tuple[int, ...] = ()
    block_size: int | None = None
    lora_id: int | str | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: tuple[tuple[ExtraKey, ...] | None, ...] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    #: SGLang says it by itself, vLLM among the extra keys of a prompt's first block.
    cache_salt: str | None = None
    session_id: str | None = None
    #: TensorRT-LLM: the attention window that these blocks are for.
    window_size: int | None = None


class BlockRemoved(msgspec.Struct, frozen=True, kw_only=True):
    """Which blocks did the engine give up? One copy of each, in one medium, or in `every_medium`."""

    block_hashes: tuple[int, ...]
    medium: str | None = None
    group_idx: int | None = None
    window_size: int | None = None
    every_medium: bool = False


class AllBlocksCleared(msgspec.Struct, frozen=True, kw_only=True):
    """Is the engine's cache empty? All of it, or one `medium` where that is named."""

    medium: str | None = None


class CacheCreated(msgspec.Struct, frozen=True, kw_only=True):
    """Did the engine just make its cache, which is empty? TensorRT-LLM, once for each attention window."""

    window_size: int | None = None


class UnknownEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What is this? An event of a type that we do not know: newer engines may have more."""

    type: str


KVEvent: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared | CacheCreated | UnknownEvent


class EventBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What did the engine say at once? Events in order, when (seconds since 1970), and which rank it is."""

    events: tuple[KVEvent, ...]
    ts: float | None = None
    data_parallel_rank: int | None = None


def tokens_per_block(event: BlockStored, number: int | None = None) -> int:
    """How many tokens has each of these blocks? 0 where the event brings no tokens.

    Errors: `KVEventError` where tokens do not fill the blocks, or extra keys are not one entry a block; `number` is the
    event's in its batch.
    """
    blocks, tokens, size = len(event.block_hashes), len(event.token_ids), event.block_size
    keys = event.extra_keys
    where = "event" if number is None else f"events[{number}]"
    if keys is not None and len(keys) != blocks:
        raise KVEventError(f"{where}.extra_keys", len(keys), f"an entry for each of {blocks} blocks")
    if not tokens:
        return 0
    size = size or (tokens // blocks if blocks else 0)
    if tokens != size * blocks:
        words = f"{blocks} blocks of {event.block_size or 'equally many'} tokens"
        raise KVEventError(f"{where}.token_ids", f"{tokens} tokens", words)
    return size
