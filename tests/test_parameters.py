"""Are the prefix producers' parameters read as llm-d reads them?"""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.prefix.hashing import SEED
from inferencesched.prefix.kv_records import Tier
from inferencesched.prefix.parameters import (
    ApproximateParameters,
    IndexerParameters,
    PreciseParameters,
    TokenProcessorParameters,
    go_duration,
)

BLOCKS = st.integers(0, 1 << 20)


def refused(cls, given, words=None):
    with pytest.raises(isched.InvalidInputError, match=words) as error:
        cls.read(given)
    return error.value


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, {}, "", " ", b"", "{}", {"autoTune": None}])
def test_nothing_said_is_the_defaults(given):
    assert ApproximateParameters.read(given) == ApproximateParameters()


def test_text_and_mapping_say_the_same():
    said = {"autoTune": False, "blockSizeTokens": 128, "lruCapacityPerServer": 7}
    assert ApproximateParameters.read(msgspec.json.encode(said)) == ApproximateParameters.read(said)


@pytest.mark.parametrize("cls", [ApproximateParameters, PreciseParameters])
@pytest.mark.parametrize(("given", "words"), [("{", "parameters: got '{', allowed: JSON"), ([1], "a mapping of names")])
def test_what_is_no_mapping_is_refused(cls, given, words):
    refused(cls, given, words)


@pytest.mark.parametrize(
    ("cls", "given", "parameter", "value"),
    [
        (ApproximateParameters, {"unknownField": 1}, "unknownField", 1),
        (ApproximateParameters, {"block_size_tokens": 1}, "block_size_tokens", 1),
        (ApproximateParameters, {"blockSizeTokens": -1}, "blockSizeTokens", -1),
        (ApproximateParameters, {"blockSizeTokens": 1.5}, "blockSizeTokens", 1.5),
        (ApproximateParameters, {"autoTune": 1}, "autoTune", 1),
        (ApproximateParameters, {"maxPrefixTokensToMatch": -1}, "maxPrefixTokensToMatch", -1),
        (ApproximateParameters, {"maxPrefixBlocksToMatch": -1}, "maxPrefixBlocksToMatch", -1),
        (PreciseParameters, {"indexerConfig": {"size": 3}}, "indexerConfig.size", 3),
        (
            PreciseParameters,
            {"kvEventsConfig": {"podDiscoveryConfig": {"port": 1}}},
            "kvEventsConfig.podDiscoveryConfig.port",
            1,
        ),
        (
            PreciseParameters,
            {"indexerConfig": {"kvCacheBackendConfigs": [{"weight": 1}]}},
            "indexerConfig.kvCacheBackendConfigs[0].name",
            None,
        ),
        (
            PreciseParameters,
            {"kvEventsConfig": {"podDiscoveryConfig": {"socketPort": 65536}}},
            "kvEventsConfig.podDiscoveryConfig.socketPort",
            65536,
        ),
        (PreciseParameters, {"tokenProcessorConfig": {"blockSize": -4}}, "tokenProcessorConfig.blockSizeTokens", -4),
    ],
)
def test_an_error_names_the_place_and_the_value(cls, given, parameter, value):
    error = refused(cls, given)
    assert (error.parameter, error.value) == (parameter, value)


def test_an_unknown_name_is_told_which_there_are():
    assert refused(PreciseParameters, {"kvEventsConfig": {"engine": "vllm"}}, "engine").allowed == (
        "no such parameter; there are zmqEndpoint, topicFilter, concurrency, engineType, discoverPods, podDiscoveryConfig, "
        "tracing"
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"indexerConfig": {"tokenizersPoolConfig": {}}}, "tokenizersPoolConfig is not supported"),
        ({"kvEventsConfig": {"engineType": "abacus"}}, 'unsupported engine type: "abacus"'),
        ({"tokenProcessorConfig": {"hashAlgorithm": "md5"}}, 'unsupported hashAlgorithm "md5"'),
        ({"tokenProcessorConfig": {"blockSizeTokens": -1}}, "blockSizeTokens must be greater than 0, got -1"),
        ({"speculativeIndexing": True, "speculativeTTL": "soon"}, 'invalid speculativeTTL "soon"'),
        (
            {"indexerConfig": {"kvBlockIndexConfig": {"redisConfig": {"address": "redis:6379"}}}},
            "the index is in this process",
        ),
    ],
)
def test_errors_are_found_by_llm_ds_words(given, words):
    refused(PreciseParameters, given, words)


# --- the approximate index ---------------------------------------------------------------------------------------


def test_a_block_size_is_needed_without_tuning():
    refused(ApproximateParameters, {"autoTune": False, "blockSizeTokens": 0}, "blockSizeTokens: got 0")
    assert ApproximateParameters.read({"blockSizeTokens": 0}).tokens_per_block() == 64


def test_the_deprecated_block_size_counts_beside_the_default():
    assert ApproximateParameters.read({"autoTune": False, "blockSize": 24}).stated_block_tokens == 24
    assert ApproximateParameters.read({"blockSize": 24, "blockSizeTokens": 128}).stated_block_tokens == 128


@given(said=st.none() | st.floats(0, 512) | st.just(float("nan")), stated=st.integers(1, 512), tune=st.booleans())
def test_block_size(said, stated, tune):
    parameters = ApproximateParameters.read({"autoTune": tune, "blockSizeTokens": stated})
    tuned = tune and said is not None and said >= 1
    assert parameters.tokens_per_block(said) == max(64, int(said) if tuned else stated)
    assert parameters.tokens_per_block(said, least=1) == (int(said) if tuned else stated)


def test_caps_on_one_prompt():
    assert ApproximateParameters().max_blocks(64) == 2048
    assert ApproximateParameters(max_prefix_tokens_to_match=100).max_blocks(64) == 1
    assert ApproximateParameters(max_prefix_tokens_to_match=10).max_blocks(64) == 0
    assert ApproximateParameters(max_prefix_tokens_to_match=0, max_prefix_blocks_to_match=3).max_blocks(64) == 3
    assert ApproximateParameters(max_prefix_tokens_to_match=0, max_prefix_blocks_to_match=0).max_blocks(64) is None
    with pytest.raises(isched.InvalidInputError, match="tokens_per_block: got 0"):
        ApproximateParameters().max_blocks(0)


def test_capacity():
    tuned, plain = ApproximateParameters(), ApproximateParameters(auto_tune=False, lru_capacity_per_server=5)
    assert tuned.capacity() == 31_250 and ApproximateParameters(lru_capacity_per_server=0).capacity(0) == 31_250
    assert tuned.capacity(40_000) == 40_000 and plain.capacity(40_000) == 5
    assert tuned.capacity(40_000, cache_block_size=16, tokens_per_block=64) == 10_000
    assert tuned.capacity(2, cache_block_size=16, tokens_per_block=64) == 1


# --- the precise index -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "size"),
    [({}, 16), ({"blockSizeTokens": 0}, 16), ({"blockSize": 8}, 8), ({"blockSize": 8, "blockSizeTokens": 32}, 32)],
)
def test_block_size_of_the_precise_index(given, size):
    assert TokenProcessorParameters.read(given).tokens_per_block == size


def test_a_seed_sets_indexes_apart():
    seeds = [TokenProcessorParameters(hash_seed=seed).seed for seed in ("", "a", "b")]
    assert seeds[0] == SEED and len(set(seeds)) == 3


def test_weights_of_tiers():
    assert IndexerParameters().weights == {Tier.DEVICE: 1.0, Tier.HOST: 0.8}
    said = [{"name": "CPU", "weight": 0.5}, {"name": "cpu_pinned", "weight": 0.6}, {"name": "drum", "weight": 1.0}]
    assert IndexerParameters.read({"kvCacheBackendConfigs": said}).weights == {Tier.HOST: 0.6}


def test_an_unconfirmed_entry_lasts_two_seconds_unless_told_otherwise():
    assert PreciseParameters().ttl == 2.0
    for text, seconds in (("500ms", 0.5), ("1m30s", 90.0), ("0s", 2.0), ("-1s", 2.0)):
        assert PreciseParameters.read({"speculativeIndexing": True, "speculativeTTL": text}).ttl == seconds
    later = PreciseParameters.read({"speculativeTTL": "soon"})  # as llm-d: nobody reads it while it is off
    with pytest.raises(isched.InvalidInputError, match="speculativeTTL: got 'soon'"):
        _ = later.ttl


def test_the_engine_is_vllm_unless_told_otherwise():
    assert PreciseParameters().kv_events_config.engine == "vllm"
    assert PreciseParameters.read({"kvEventsConfig": {"engineType": "sglang"}}).kv_events_config.engine == "sglang"


@pytest.mark.parametrize("text", ["", "1", "s", "1 s", "1s ", "1x", "+", "--1s", "1.s.", "1ss", ".s"])
def test_no_duration(text):
    assert go_duration(text) is None


@pytest.mark.parametrize(("text", "seconds"), [("1.s", 1.0), (".5s", 0.5), ("+2h", 7200.0), ("-0", 0.0), ("3µs", 3e-6)])
def test_durations(text, seconds):
    assert go_duration(text) == pytest.approx(seconds)
