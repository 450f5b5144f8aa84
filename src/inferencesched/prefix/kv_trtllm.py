"""What does TensorRT-LLM say of its KV cache?

It gives JSON, an event or a list of events (tensorrt_llm/_utils.py, `KVCacheEventSerializer`)::

    {"event_id": 7, "window_size": 4096, "attention_dp_rank": 0, "data": {"type": ...}}

    created   num_blocks_per_cache_level     a fresh cache, once for each attention window
    stored    parent_hash, blocks: block_hash, tokens: token_id, token_extra_id; cache_level, mm_keys, cache_salt, lora_id
    removed   block_hashes                   from every level
    updated   block_hash, cache_level: old_value, new_value

Level 0 is the device, level 1 the host. ``event_id`` counts from 0, as the sequence numbers of the other engines do:
each event becomes a batch with a sequence number, for `inferencesched.prefix.sequence.EventStream`.
"""

from typing import Annotated, Any, Final, NamedTuple

import msgspec

from inferencesched.errors import KVEventError, whole_number
from inferencesched.prefix.kv_records import (
    BlockRemoved,
    BlockStored,
    CacheCreated,
    EventBatch,
    ExtraKey,
    KVEvent,
    UnknownEvent,
)
from inferencesched.prefix.kv_wire import UNREADABLE, WORD, Token, extra_key, hash_as_uint64, refused

_LEVELS: Final = ("GPU", "CPU")
_Level = Annotated[int, msgspec.Meta(ge=0, le=1)]
_Rank = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


class NumberedBatch(NamedTuple):
    """Which number in the stream has this batch?"""

    sequence: int
    batch: EventBatch


class _UniqueToken(msgspec.Struct, frozen=True):
    token_id: Token
    token_extra_id: int = 0


class _MmKey(msgspec.Struct, frozen=True):
    hash: str
    start_offset: int = 0


class _Block(msgspec.Struct, frozen=True):
    block_hash: int | str
    tokens: tuple[_UniqueToken, ...]
    cache_level: _Level = 0
    mm_keys: tuple[_MmKey, ...] | None = None
    cache_salt: str | int | None = None
    lora_id: int | str | None = None


class _Stored(msgspec.Struct, frozen=True, tag_field="type", tag="stored"):
    blocks: tuple[_Block, ...]
    parent_hash: int | str | None = None


class _Removed(msgspec.Struct, frozen=True, tag_field="type", tag="removed"):
    block_hashes: tuple[int | str, ...]


class _Created(msgspec.Struct, frozen=True, tag_field="type", tag="created"): ...


class _Diff(msgspec.Struct, frozen=True):
    new_value: _Level
    old_value: _Level


class _Updated(msgspec.Struct, frozen=True, tag_field="type", tag="updated"):
    block_hash: int | str
    cache_level: _Diff | None = None


_Data = _Stored | _Removed | _Created | _Updated
_KNOWN = frozenset(("stored", "removed", "created", "updated"))


class _Event(msgspec.Struct, frozen=True):
    event_id: Annotated[int, msgspec.Meta(ge=0)]
    data: dict[str, Any]
    window_size: int | None = None
    attention_dp_rank: _Rank | None = None


def decode_trtllm_events(payload: bytes, *, block_size: int) -> tuple[NumberedBatch, ...]:
    """What is in the events that TensorRT-LLM gave, as JSON?

    `block_size` is the engine's ``tokens_per_block``. A block with fewer tokens is a prompt's unfinished end: it is
    left out with what follows it, as nobody can share it. A block that changes its level is stored there, then removed
    where it was. `mm_keys` become extra keys, (hash, offset); so do extra token ids that are not 0.

    Errors: `KVEventError` for what cannot be read; then no event is returned.

    >>> events = b'''{"event_id": 4, "window_size": 512, "data": {"type": "stored", "parent_hash": null, "blocks": [
    ...     {"block_hash": -2, "tokens": [{"token_id": 5}, {"token_id": 6}], "cache_level": 1},
    ...     {"block_hash": 9, "tokens": [{"token_id": 7}]}]}}'''
    >>> [(sequence, batch)] = decode_trtllm_events(events, block_size=2)
    >>> sequence, batch.events[0].block_hashes, batch.events[0].token_ids, batch.events[0].medium
    (4, (18446744073709551614,), (5, 6), 'CPU')
    """
    size = whole_number("block_size", block_size, 1)
    try:
        loose = msgspec.json.decode(payload)
        events = msgspec.convert(loose if isinstance(loose, list) else [loose], list[_Event])
        return tuple(
            NumberedBatch(
                event.event_id, EventBatch(events=_read(event, size), data_parallel_rank=event.attention_dp_rank)
            )
            for event in events
        )
    except UNREADABLE as error:
        raise refused("payload", error) from error


def _read(event: _Event, size: int) -> tuple[KVEvent, ...]:
    kind, window = event.data.get("type"), event.window_size
    if isinstance(kind, str) and kind not in _KNOWN:
        return (UnknownEvent(type=kind[:64]),)
    data: _Data = msgspec.convert(event.data, _Data)
    if isinstance(data, _Stored):
        return tuple(_stored(data, window, size))
    if isinstance(data, _Removed):
        hashes = tuple(map(_hash, data.block_hashes))
        return (BlockRemoved(block_hashes=hashes, window_size=window, every_medium=True),)
    if isinstance(data, _Created):
        return (CacheCreated(window_size=window),)
    level, block = data.cache_level, _hash(data.block_hash)
    if level is None or level.new_value == level.old_value:
        return ()
    return (
        BlockStored(block_hashes=(block,), medium=_LEVELS[level.new_value], window_size=window),
        BlockRemoved(block_hashes=(block,), medium=_LEVELS[level.old_value], window_size=window),
    )


def _stored(data: _Stored, window: int | None, size: int) -> list[KVEvent]:
    """Return an event for each stretch of blocks on one level."""
    events: list[KVEvent] = []
    parent = None if data.parent_hash is None else _hash(data.parent_hash)
    run: list[_Block] = []
    for block in data.blocks:
        if len(block.tokens) > size:
            raise KVEventError("data.blocks.tokens", f"{len(block.tokens)} tokens", f"at most block_size = {size}")
        if len(block.tokens) < size:
            break
        if run and block.cache_level != run[0].cache_level:
            events.append(_run(run, parent, window, size))
            parent, run = _hash(run[-1].block_hash), []
        run.append(block)
    if run:
        events.append(_run(run, parent, window, size))
    return events


def _run(run: list[_Block], parent: int | None, window: int | None, size: int) -> BlockStored:
    salt, keys = run[0].cache_salt, tuple(map(_extra_keys, run))
    return BlockStored(
        block_hashes=tuple(_hash(block.block_hash) for block in run),
        parent_block_hash=parent,
        token_ids=tuple(token.token_id for block in run for token in block.tokens),
        block_size=size,
        lora_id=run[0].lora_id,
        medium=_LEVELS[run[0].cache_level],
        extra_keys=keys if any(keys) else None,
        cache_salt=None if salt is None else str(salt),
        window_size=window,
    )


def _extra_keys(block: _Block) -> tuple[ExtraKey, ...] | None:
    keys: list[ExtraKey] = [(key.hash, key.start_offset) for key in block.mm_keys or ()]
    if any(token.token_extra_id for token in block.tokens):
        keys.append(extra_key([token.token_extra_id for token in block.tokens]))
    return tuple(keys) or None


def _hash(value: int | str) -> int:
    """Return the hash as uint64; newer engines write 32 bytes as hexadecimal digits, of which the last 8 count."""
    if isinstance(value, int):
        return hash_as_uint64(value, "block_hash")
    if 0 < len(value) <= 128 and all(digit in "0123456789abcdefABCDEF" for digit in value):
        return int(value, 16) & WORD
    raise KVEventError("block_hash", value[:64], "an integer of 64 bits, or hexadecimal digits")
