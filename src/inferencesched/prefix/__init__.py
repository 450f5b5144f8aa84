"""Who holds which leading blocks of a prompt?"""

from inferencesched.prefix.bookkeeping import IndexHealth
from inferencesched.prefix.events import KVEventApplier, KVEventStats
from inferencesched.prefix.extra_keys import Feature, block_extra_keys, hash_blocks
from inferencesched.prefix.hashing import HashChain, block_hashes
from inferencesched.prefix.index import IndexStats, PrefixIndex
from inferencesched.prefix.kv_records import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    CacheCreated,
    EventBatch,
    Tier,
    UnknownEvent,
    tier_of,
)
from inferencesched.prefix.kv_trtllm import NumberedBatch, decode_trtllm_events
from inferencesched.prefix.kv_wire import decode_event_batch
from inferencesched.prefix.precise import TIER_WEIGHTS, PrecisePrefixProducer, UnionPrefixProducer
from inferencesched.prefix.producer import ApproximatePrefixProducer, PrefixReceipt
from inferencesched.prefix.sequence import (
    EventStream,
    ReplayRequest,
    StreamStep,
    Topic,
    WireFrame,
    decode_event_frame,
    decode_replay_reply,
    parse_topic,
)
from inferencesched.prefix.snapshot import IndexSnapshot, take_snapshot

__all__ = [
    "TIER_WEIGHTS",
    "AllBlocksCleared",
    "ApproximatePrefixProducer",
    "BlockRemoved",
    "BlockStored",
    "CacheCreated",
    "EventBatch",
    "EventStream",
    "Feature",
    "HashChain",
    "IndexHealth",
    "IndexSnapshot",
    "IndexStats",
    "KVEventApplier",
    "KVEventStats",
    "NumberedBatch",
    "PrecisePrefixProducer",
    "PrefixIndex",
    "PrefixReceipt",
    "ReplayRequest",
    "StreamStep",
    "Tier",
    "Topic",
    "UnionPrefixProducer",
    "UnknownEvent",
    "WireFrame",
    "block_extra_keys",
    "block_hashes",
    "decode_event_batch",
    "decode_event_frame",
    "decode_replay_reply",
    "decode_trtllm_events",
    "hash_blocks",
    "parse_topic",
    "take_snapshot",
    "tier_of",
]
