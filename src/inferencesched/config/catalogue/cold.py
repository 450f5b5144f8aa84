"""Cold prompts, by the names of llm-d's router.

llm-d's scorer remembers by itself; here a producer does, which is made where none is there.
"""

from typing import Final

from inferencesched.config.spec import Need, Parameters, PluginSpec, Workshop
from inferencesched.endpoints import PREFIX_MATCH
from inferencesched.producers.cold import NoHitLruProducer
from inferencesched.scorers.cold import NoHitLruScorer
from inferencesched.signals import COLD_RANK, of_producer

PRODUCER_TYPE: Final = "no-hit-lru-producer"
LRU_SIZE: Final = 1024
_APPROXIMATE: Final = "approx-prefix-cache-producer"


class NoHitLruParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``lruSize``: how many endpoints are remembered, 0 or less is the default. ``prefixMatchInfoProducerName``: whose matches make a
    prompt cold or not.
    """

    lru_size: int = LRU_SIZE
    prefix_match_info_producer_name: str = ""

    @property
    def size(self) -> int:
        """How many endpoints are remembered?"""
        return self.lru_size if self.lru_size > 0 else LRU_SIZE


class NoHitLruScorerParameters(NoHitLruParameters, frozen=True, kw_only=True, rename="camel"):
    """As `NoHitLruParameters`; ``coldRankProducerName``, which llm-d does not have, is the producer that remembers."""

    cold_rank_producer_name: str = ""


def _scorer(parameters: NoHitLruScorerParameters, workshop: Workshop) -> NoHitLruScorer:
    return NoHitLruScorer(parameters.prefix_match_info_producer_name, parameters.cold_rank_producer_name)


def _read_scorer(scorer: NoHitLruScorer) -> NoHitLruScorerParameters:
    return NoHitLruScorerParameters(
        prefix_match_info_producer_name=scorer.producer, cold_rank_producer_name=scorer.cold_producer
    )


def _scorer_needs(parameters: NoHitLruScorerParameters) -> tuple[Need, ...]:
    prefix = parameters.prefix_match_info_producer_name
    made = None
    if not parameters.cold_rank_producer_name:
        made = {"lruSize": parameters.size, "prefixMatchInfoProducerName": prefix}
    return (
        Need(of_producer(COLD_RANK, parameters.cold_rank_producer_name), PRODUCER_TYPE, made),
        Need(of_producer(PREFIX_MATCH, prefix), _APPROXIMATE, required=False),
    )


def _producer(parameters: NoHitLruParameters, workshop: Workshop) -> NoHitLruProducer:
    return NoHitLruProducer(lru_size=parameters.size, producer=parameters.prefix_match_info_producer_name)


def _read_producer(producer: NoHitLruProducer) -> NoHitLruParameters:
    return NoHitLruParameters(lru_size=producer.lru_size, prefix_match_info_producer_name=producer.producer)


def _producer_needs(parameters: NoHitLruParameters) -> tuple[Need, ...]:
    prefix = parameters.prefix_match_info_producer_name
    return (Need(of_producer(PREFIX_MATCH, prefix), _APPROXIMATE, required=False),)


SPECS = (
    PluginSpec(
        "no-hit-lru-scorer",
        ("scorer",),
        NoHitLruScorerParameters,
        _scorer,
        NoHitLruScorer,
        _read_scorer,
        _scorer_needs,
    ),
    PluginSpec(
        PRODUCER_TYPE,
        ("producer",),
        NoHitLruParameters,
        _producer,
        NoHitLruProducer,
        _read_producer,
        _producer_needs,
        origin="own",
    ),
)
