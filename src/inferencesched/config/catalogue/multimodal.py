"""Encoder caches, by the names of llm-d's router."""

from typing import Final

import msgspec

from inferencesched.config.spec import Need, Parameters, PluginSpec
from inferencesched.producers.multimodal import EncoderCacheProducer, entries_of
from inferencesched.scorers.multimodal import EncoderCacheScorer
from inferencesched.signals import ENCODER_MATCH, of_producer

_PRODUCER: Final = "mm-embeddings-cache-producer"


class EncoderProducerParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``cacheSizeInMBPerServer``: the servers' encoder cache, MiB, 2 of them an item; 0 or less is the default."""

    cache_size_in_mb_per_server: int = msgspec.field(default=4096, name="cacheSizeInMBPerServer")


class EncoderScorerParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``producerName``: whose matches count."""

    producer_name: str = ""


SPECS = (
    PluginSpec(
        "mm-embeddings-cache-scorer",
        ("scorer",),
        EncoderScorerParameters,
        lambda p, w: EncoderCacheScorer(p.producer_name),
        EncoderCacheScorer,
        lambda s: EncoderScorerParameters(producer_name=s.producer),
        lambda p: (Need(of_producer(ENCODER_MATCH, p.producer_name), _PRODUCER),),
    ),
    PluginSpec(
        _PRODUCER,
        ("producer",),
        EncoderProducerParameters,
        lambda p, w: EncoderCacheProducer(entries=entries_of(p.cache_size_in_mb_per_server)),
        EncoderCacheProducer,
        lambda s: EncoderProducerParameters(cache_size_in_mb_per_server=2 * s.entries),
    ),
)
