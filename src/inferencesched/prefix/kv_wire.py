"""What does an engine say of its KV cache?

Engines publish batches of events, as msgpack or JSON. A batch is ``[ts, events, data_parallel_rank]`` or a map with
those keys; an event is an array that begins with its type, or a map with the key ``type``::

    BlockStored        block_hashes, parent_block_hash, token_ids, block_size, lora_id, medium, lora_name, extra_keys,
                       group_idx, kv_cache_spec_kind, kv_cache_spec_sliding_window
    BlockRemoved       block_hashes, medium, group_idx
    AllBlocksCleared   medium

That is the order of an array, which may end early or go on with what we do not know; a map may leave out keys, and may
have others. Whatever cannot be read is one `KVEventError`, which names the place: a batch is read whole or not at all.

Read off vLLM 0.32 (vllm/distributed/kv_events.py) and SGLang (sglang/srt/disaggregation/kv_events.py); what hashes and
media mean, off llm-d-router (pkg/kvevents) and Dynamo (lib/kv-router/src/zmq_wire). TensorRT-LLM speaks otherwise:
`inferencesched.prefix.kv_trtllm`.
"""

from typing import Annotated, Any, Final, Literal, cast

import msgspec

from inferencesched.errors import InvalidInputError, KVEventError
from inferencesched.prefix.kv_records import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    ExtraKey,
    KVEvent,
    UnknownEvent,
    tokens_per_block,
)

WORD: Final = (1 << 64) - 1
_LOWEST = -(1 << 63)
_INTEGERS = {int}
#: What msgspec raises at hostile bytes, beside its own errors.
UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)

# --- as it comes over the wire -----------------------------------------------------------------------------------

Token = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_Size = Annotated[int, msgspec.Meta(ge=1, le=0x7FFFFFFF)]
#: A group has a counter in every block, so hostile numbers cannot be let in; engines have a handful.
_Group = Annotated[int, msgspec.Meta(ge=0, le=255)]
_Rank = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


class _Stored(msgspec.Struct, frozen=True):
    """The fields in the order of an array. SGLang's arrays have a map with the salt in the place of `lora_name`."""

    block_hashes: tuple[int | bytes, ...]
    parent_block_hash: int | bytes | None = None
    token_ids: tuple[Token, ...] | None = None
    block_size: _Size | None = None
    lora_id: int | str | None = None
    medium: str | None = None
    lora_name: str | dict[str, Any] | None = None
    extra_keys: tuple[tuple[Any, ...] | None, ...] | None = None
    group_idx: _Group | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class _StoredArray(_Stored, frozen=True, array_like=True, tag="BlockStored"): ...


class _StoredMap(_Stored, frozen=True, tag_field="type", tag="BlockStored"):
    cache_salt: str | None = None
    session_id: str | None = None


class _Removed(msgspec.Struct, frozen=True):
    block_hashes: tuple[int | bytes, ...]
    medium: str | None = None
    group_idx: _Group | None = None


class _RemovedArray(_Removed, frozen=True, array_like=True, tag="BlockRemoved"): ...


class _RemovedMap(_Removed, frozen=True, tag_field="type", tag="BlockRemoved"): ...


class _Cleared(msgspec.Struct, frozen=True):
    medium: str | None = None


class _ClearedArray(_Cleared, frozen=True, array_like=True, tag="AllBlocksCleared"): ...


class _ClearedMap(_Cleared, frozen=True, tag_field="type", tag="AllBlocksCleared"): ...


_Array = _StoredArray | _RemovedArray | _ClearedArray
_Map = _StoredMap | _RemovedMap | _ClearedMap
_KNOWN = frozenset(("BlockStored", "BlockRemoved", "AllBlocksCleared"))


class _Batch(msgspec.Struct, frozen=True):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: _Rank | None = None


class _BatchArray(_Batch, frozen=True, array_like=True): ...


class _LooseBatch(msgspec.Struct, frozen=True):
    ts: float
    events: list[Any]
    data_parallel_rank: _Rank | None = None


class _LooseBatchArray(_LooseBatch, frozen=True, array_like=True): ...


_BATCH_ARRAY = msgspec.msgpack.Decoder(_BatchArray)
_BATCH_MAP = msgspec.msgpack.Decoder(_Batch)
_ARRAY = msgspec.msgpack.Decoder(_Array)
_MAP = msgspec.msgpack.Decoder(_Map)
_ANY = msgspec.msgpack.Decoder()


def decode_event_batch(payload: bytes, *, encoding: Literal["msgpack", "json"] = "msgpack") -> EventBatch:
    """What is in the payload of one frame?

    Tolerated: arrays and maps, at both levels; hashes as signed or unsigned integers or as bytes; missing and unknown
    fields; unknown types of events (`UnknownEvent`); SGLang's bigrams under EAGLE, of which each first token counts.

    Cost: about 5 us an event and 1 us a block of 16 tokens (measured: see the page on KV events). Errors: `KVEventError` for anything else, above all for
    payloads that are cut off, nested too deep, out of range, or whose tokens do not fill their blocks.

    >>> batch = decode_event_batch(b'[0.5, [["BlockStored", [-1], null, [7, 8], 2]], 3]', encoding="json")
    >>> batch.data_parallel_rank, batch.events[0].block_hashes, batch.events[0].token_ids
    (3, (18446744073709551615,), (7, 8))
    >>> decode_event_batch(b'[0.5, [{"type": "BlockRemoved", "block_hashes": ["a"]}]]', encoding="json")
    Traceback (most recent call last):
    ...
    inferencesched.errors.KVEventError: events[0].block_hashes[0]: got 'str', allowed: `int | bytes`
    """
    if encoding not in ("msgpack", "json"):
        raise InvalidInputError("encoding", encoding, "'msgpack' or 'json'")
    batch: _Batch | _LooseBatch
    try:
        if encoding == "json":
            loose = msgspec.json.decode(payload)
            batch = msgspec.convert(loose, _LooseBatchArray if isinstance(loose, list) else _LooseBatch)
            events = tuple(decode_event(event, f"events[{i}]") for i, event in enumerate(batch.events))
        else:
            batch = (_BATCH_ARRAY if _is_array(payload) else _BATCH_MAP).decode(payload)
            events = tuple(_packed_event(raw, i) for i, raw in enumerate(batch.events))
    except UNREADABLE as error:
        raise refused("payload", error) from error
    for i, event in enumerate(events):
        if type(event) is BlockStored:
            tokens_per_block(event, i)
    return EventBatch(events=events, ts=batch.ts, data_parallel_rank=batch.data_parallel_rank)


def decode_event(event: Any, where: str = "event") -> KVEvent:
    r"""Which event is this, that came as a list or a dict?

    Each field is checked by itself; whether they fit each other: `tokens_per_block`. `where` is what an error calls it.

    >>> decode_event(["BlockRemoved", [1, b"\x00\x02"], "CPU"])
    BlockRemoved(block_hashes=(1, 2), medium='CPU', group_idx=None, window_size=None, every_medium=False)
    >>> decode_event({"type": "BlockMoved"})
    UnknownEvent(type='BlockMoved')
    """
    array = isinstance(event, list | tuple)
    if not array and not isinstance(event, dict):
        raise KVEventError(where, type(event).__name__, "an array that begins with its type, or a map")
    tag = (event[0] if event else None) if array else event.get("type")
    if not isinstance(tag, str):
        raise KVEventError(f"{where}.type", type(tag).__name__, "a string")
    if tag not in _KNOWN:
        return UnknownEvent(type=tag[:64])
    try:
        # bytes stay what they are: msgspec would read strings as base64 for them
        return _record(msgspec.convert(_unpaired(event), _Array if array else _Map, builtin_types=(bytes,)), where)
    except UNREADABLE as error:
        raise refused(where, error) from error


def refused(where: str, error: Exception) -> KVEventError:
    """Which of our errors says what msgspec said?"""
    words, _, path = map(_brief, str(error).partition(" - at "))
    if not isinstance(error, msgspec.ValidationError):
        return KVEventError(where, words, "one whole message of the stated encoding")
    expected, _, got = words.partition(", got ")
    place = where + (path.strip("`").removeprefix("$") if path.startswith("`$") else f" ({path})" if path else "")
    return KVEventError(place, got.strip("`") or "another value", expected.removeprefix("Expected "))


def _brief(words: str) -> str:
    """Return words without their middle where they are long: a path into a thousand levels tells nothing more."""
    return words if len(words) <= 200 else f"{words[:140]} ... {words[-40:]}"


def _is_array(payload: bytes) -> bool:
    return bool(payload) and (payload[0] & 0xF0 == 0x90 or payload[0] in (0xDC, 0xDD))


def _packed_event(raw: msgspec.Raw, i: int) -> KVEvent:
    try:
        return _record((_ARRAY if _is_array(bytes(memoryview(raw)[:1])) else _MAP).decode(raw), f"events[{i}]")
    except msgspec.ValidationError:  # slow, and tells more apart: unknown types, bigrams
        return decode_event(_ANY.decode(raw), f"events[{i}]")


def _unpaired(event: Any) -> Any:
    """Return the event with bigrams of tokens reduced to their firsts."""
    key: Any = 3 if isinstance(event, list | tuple) else "token_ids"
    if not isinstance(event, dict) and len(event) < 4:
        return event
    tokens = event[key] if not isinstance(event, dict) else event.get(key)
    if not isinstance(tokens, list | tuple) or not tokens or not isinstance(tokens[0], list | tuple):
        return event
    firsts = [pair[0] if isinstance(pair, list | tuple) and len(pair) == 2 else pair for pair in tokens]
    if isinstance(event, dict):
        return event | {key: firsts}
    return [*event[:3], firsts, *event[4:]]


def _record(wire: _Array | _Map, where: str) -> KVEvent:
    if isinstance(wire, _Stored):
        salt = wire.cache_salt if isinstance(wire, _StoredMap) else None
        name = wire.lora_name
        if isinstance(name, dict):
            salt, name = name.get("cache_salt"), None
            if not (salt is None or isinstance(salt, str)):
                raise KVEventError(f"{where}.cache_salt", type(salt).__name__, "a string")
        parent = wire.parent_block_hash
        return BlockStored(
            block_hashes=_hashes(wire.block_hashes, where),
            parent_block_hash=None if parent is None else hash_as_uint64(parent, f"{where}.parent_block_hash"),
            token_ids=wire.token_ids or (),
            block_size=wire.block_size,
            lora_id=wire.lora_id,
            medium=wire.medium,
            lora_name=name,
            extra_keys=_extra_keys(wire.extra_keys, where),
            group_idx=wire.group_idx,
            kv_cache_spec_kind=wire.kv_cache_spec_kind,
            kv_cache_spec_sliding_window=wire.kv_cache_spec_sliding_window,
            cache_salt=salt,
            session_id=wire.session_id if isinstance(wire, _StoredMap) else None,
        )
    if isinstance(wire, _Removed):
        hashes = _hashes(wire.block_hashes, where)
        return BlockRemoved(block_hashes=hashes, medium=wire.medium, group_idx=wire.group_idx)
    return AllBlocksCleared(medium=wire.medium)


def hash_as_uint64(value: object, where: str = "hash") -> int:
    r"""Which uint64 stands for an engine's hash?

    A signed integer is the same 64 bits. Of bytes the last 8 count, big-endian, as vLLM itself and llm-d take them.

    >>> hash_as_uint64(-1) == 2**64 - 1, hash_as_uint64(bytes(24) + b"\x00\x00\x00\x00\x00\x00\x30\x39")
    (True, 12345)
    """
    if type(value) is int and _LOWEST <= value <= WORD:
        return value & WORD
    if isinstance(value, bytes) and value:
        return int.from_bytes(value[-8:], "big")
    shown = value if type(value) is int and value.bit_length() < 256 else type(value).__name__
    raise KVEventError(where, shown, "an integer of 64 bits, signed or not, or bytes")


def _hashes(values: tuple[int | bytes, ...], where: str) -> tuple[int, ...]:
    if set(map(type, values)) == _INTEGERS:  # vLLM's and SGLang's: all is well where the ends are
        integers = cast("tuple[int, ...]", values)
        if min(integers) >= 0 and max(integers) <= WORD:
            return integers
    return tuple(hash_as_uint64(value, f"{where}.block_hashes[{i}]") for i, value in enumerate(values))


def _extra_keys(
    keys: tuple[tuple[Any, ...] | None, ...] | None, where: str
) -> tuple[tuple[ExtraKey, ...] | None, ...] | None:
    if keys is None or not any(keys):
        return keys
    return tuple(
        block and tuple(extra_key(key, f"{where}.extra_keys[{i}][{k}]") for k, key in enumerate(block))
        for i, block in enumerate(keys)
    )


def extra_key(key: object, where: str = "extra_key") -> ExtraKey:
    """Is this one extra key? A scalar, or a flat array of scalars, which becomes a tuple."""
    if isinstance(key, list | tuple):
        if all(map(_is_scalar, key)):
            return tuple(key)
    elif _is_scalar(key):
        return cast("ExtraKey", key)
    raise KVEventError(
        where, type(key).__name__, "a string, bytes, an integer of 64 bits, a float, or an array of those"
    )


def _is_scalar(key: object) -> bool:
    return key is None or isinstance(key, str | float | bytes) or (isinstance(key, int) and _LOWEST <= key <= WORD)
