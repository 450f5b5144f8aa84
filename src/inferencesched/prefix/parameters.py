"""What do the prefix producers' parameters in an llm-d configuration mean?

The parameters of `approx-prefix-cache-producer` and `precise-prefix-cache-producer` under their own names, with their
defaults, as llm-d-router reads them (pkg/epp/framework/plugins/requestcontrol/dataproducer/approximateprefix/types.go,
preciseprefixcache/producer.go, pkg/kvcache and pkg/kvevents; snapshot of August 2026). Rules:

* a name that is not known is an error, at any depth; a name without a value (YAML's ``null``) is as good as absent;
* what is deprecated still counts, where its successor says nothing;
* what comes out of several parameters has a method of its own: block size, cap on blocks, capacity, weights of tiers.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Self, get_args

import msgspec
import xxhash

from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.prefix.hashing import SEED
from inferencesched.prefix.kv_records import Tier, tier_of

#: The least block size of the approximate index: an index of smaller blocks takes too much memory for what it tells.
LEAST_BLOCK_TOKENS: Final = 64
_BLOCK_TOKENS: Final = 16
_LRU_CAPACITY: Final = 31_250
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


class _Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """How are parameters read? From the mapping of a configuration, from JSON text, or from nothing."""

    @classmethod
    def read(cls, given: Mapping[str, Any] | str | bytes | None = None) -> Self:
        """Which parameters are these? A mapping, JSON text, or nothing at all.

        Errors: `InvalidInputError`, which names the path of the parameter, its value and what is allowed.
        """
        raw: Any = given
        if given is None or (isinstance(given, str | bytes) and not given.strip()):
            raw = {}
        elif isinstance(given, str | bytes):
            try:
                raw = msgspec.json.decode(given)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise InvalidInputError("parameters", given, f"JSON ({error})") from error
        if not isinstance(raw, Mapping):
            raise InvalidInputError("parameters", raw, "a mapping of names to values")
        said = _without_nulls(raw)
        try:
            return msgspec.convert(said, cls)
        except msgspec.ValidationError as error:
            raise _refused(cls, said, error) from error


class ApproximateParameters(_Parameters, frozen=True, kw_only=True, rename="camel"):
    """How is the approximate prefix index of an llm-d configuration set up?

    ``autoTune`` takes block size and capacity from what the endpoints say of their caches. ``blockSizeTokens`` counts
    where they say nothing, ``blockSize`` is its deprecated name. ``maxPrefixTokensToMatch`` caps what is looked up of
    one prompt; ``maxPrefixBlocksToMatch``, deprecated, counts where that is 0; with both 0 there is no cap.
    ``lruCapacityPerServer`` is blocks an endpoint, 0 for the default.

    Errors: `InvalidInputError` for a negative number, and for no block size while ``autoTune`` is off.

    >>> parameters = ApproximateParameters.read({"autoTune": False, "blockSizeTokens": 128})
    >>> parameters.tokens_per_block(), parameters.max_blocks(128), parameters.capacity()
    (128, 1024, 31250)
    >>> ApproximateParameters.read({"blocksize": 16})
    Traceback (most recent call last):
    ...
    inferencesched.errors.InvalidInputError: blocksize: got 16, allowed: no such parameter; there are autoTune, blockSizeTokens, blockSize, maxPrefixTokensToMatch, maxPrefixBlocksToMatch, lruCapacityPerServer
    """

    auto_tune: bool = True
    block_size_tokens: _Count = _BLOCK_TOKENS
    block_size: _Count = 0
    max_prefix_tokens_to_match: _Count = 131_072
    max_prefix_blocks_to_match: _Count = 2048
    lru_capacity_per_server: _Count = _LRU_CAPACITY

    def __post_init__(self) -> None:
        if not self.auto_tune and not self.stated_block_tokens:
            allowed = "an integer of at least 1 while autoTune is off"
            raise InvalidInputError("blockSizeTokens", self.block_size_tokens, allowed)

    @property
    def stated_block_tokens(self) -> int:
        """Which block size do the parameters state? 0 for none; the deprecated name counts beside the default."""
        if self.block_size and self.block_size_tokens == _BLOCK_TOKENS:
            return self.block_size
        return self.block_size_tokens

    def tokens_per_block(self, cache_block_size: float | None = None, *, least: int = LEAST_BLOCK_TOKENS) -> int:
        """How many tokens has a block of the index?

        `cache_block_size` is what an endpoint says of its own cache, None, 0 or NaN where it does not: it counts under
        ``autoTune``. Never less than `least`, wherever the size comes from.

        >>> ApproximateParameters.read().tokens_per_block(16), ApproximateParameters.read().tokens_per_block(128)
        (64, 128)
        """
        size = _known(cache_block_size) if self._tunes(cache_block_size) else self.stated_block_tokens
        return max(least, size)

    def max_blocks(self, tokens_per_block: int) -> int | None:
        """How many blocks of one prompt are looked up at most? None for all of them.

        0 where the cap is less than a block: then nothing is ever matched.

        >>> ApproximateParameters.read({"maxPrefixTokensToMatch": 0}).max_blocks(64)
        2048
        """
        if self.max_prefix_tokens_to_match:
            return self.max_prefix_tokens_to_match // whole_number("tokens_per_block", tokens_per_block, 1)
        return self.max_prefix_blocks_to_match or None

    def capacity(
        self,
        cache_blocks: float | None = None,
        *,
        cache_block_size: float | None = None,
        tokens_per_block: int | None = None,
    ) -> int:
        """How many blocks of the index does one endpoint hold at most?

        `cache_blocks` is what the endpoint says of its own cache: it counts under ``autoTune``. llm-d takes that number
        as it is, which is four times too much for an engine's blocks of 16 tokens and an index's of 64; where both
        sizes are given here, the number is that of the index's own blocks.

        >>> ApproximateParameters.read().capacity(40_000, cache_block_size=16, tokens_per_block=64)
        10000
        """
        if self._tunes(cache_blocks):
            blocks, size = _known(cache_blocks), _known(cache_block_size)
            return max(1, blocks * size // tokens_per_block) if size and tokens_per_block else blocks
        return self.lru_capacity_per_server or _LRU_CAPACITY

    def _tunes(self, said: float | None) -> bool:
        return self.auto_tune and _known(said) > 0


class TokenProcessorParameters(_Parameters, frozen=True, kw_only=True, rename="camel"):
    """How does an llm-d configuration cut prompts into blocks, for the precise index?

    ``blockSize`` is the deprecated name of ``blockSizeTokens``; 0 is "not said". ``hashSeed`` sets indexes apart.
    ``hashAlgorithm`` is checked and makes no other difference: the index hashes as `hash_blocks` does.

    >>> TokenProcessorParameters.read({"blockSize": 64}).tokens_per_block
    64
    """

    block_size_tokens: int = 0
    block_size: int = 0
    hash_seed: str = ""
    hash_algorithm: str = ""

    def __post_init__(self) -> None:
        size = self.block_size_tokens or self.block_size
        if size < 0:
            theirs = f"blockSizeTokens must be greater than 0, got {size}"
            raise _foreign("blockSizeTokens", size, "an integer of at least 1, or 0 for the default", theirs)
        if self.hash_algorithm not in ("", "cbor-fnv", "xxh64"):
            theirs = f'unsupported hashAlgorithm "{self.hash_algorithm}"'
            raise _foreign("hashAlgorithm", self.hash_algorithm, "'cbor-fnv' or 'xxh64'", theirs)

    @property
    def tokens_per_block(self) -> int:
        """How many tokens has a block? 16 where nothing is said."""
        return self.block_size_tokens or self.block_size or _BLOCK_TOKENS

    @property
    def seed(self) -> int:
        """Which seed do block hashes start from? That of the field where ``hashSeed`` is empty, else one made of it."""
        return xxhash.xxh3_64_intdigest(self.hash_seed.encode(), SEED) if self.hash_seed else SEED


class InMemoryParameters(_Parameters, frozen=True, kw_only=True, rename="camel"):
    """How large may llm-d's own index grow? Read and checked; `PrefixIndex` has neither limit (see the differences)."""

    size: _Count = 100_000_000
    pod_cache_size: _Count = 10


class CostAwareMemoryParameters(_Parameters, frozen=True, kw_only=True, rename="camel"):
    """How much memory may llm-d's other index take? Read and checked, as `InMemoryParameters`."""

    size: str = "2GiB"


class RedisParameters(_Parameters, frozen=True, kw_only=True, rename="camel"):
    """Where is llm-d's shared index? Read, and refused by `PreciseParameters`: an index here is in this process."""

    address: str = ""
    backend_type: str = ""
    enable_rdma: bool = msgspec.field(default=False, name="enableRDMA")


class BlockIndexParameters(_Parameters, frozen=True, kw_only=True, rename="camel"):
    """Which index does an llm-d configuration ask for? All of them are the one `PrefixIndex` here."""

    in_memory_config: InMemoryParameters | None = None
    cost_aware_memory_config: CostAwareMemoryParameters | None = None
    redis_config: RedisParameters | None = None
    enable_metrics: bool = False
    metrics_logging_interval: int | str = 0


class BackendParameters(_Parameters, frozen=True, kw_only=True, rename="camel"):
    """How much is a block on this medium worth? ``name`` as engines say it, ``weight`` against 1 for the device."""

    name: str
    weight: float = 0.0


class IndexerParameters(_Parameters, frozen=True, kw_only=True, rename="camel"):
    """Which index, and how much is a block on each medium worth?

    ``tokenizersPoolConfig`` is refused, as llm-d refuses it: tokens come with the request.
    """

    kv_block_index_config: BlockIndexParameters = msgspec.field(default_factory=BlockIndexParameters)
    kv_cache_backend_configs: tuple[BackendParameters, ...] = (
        BackendParameters(name="gpu", weight=1.0),
        BackendParameters(name="cpu", weight=0.8),
    )
    kv_cache_default_backend_weight: float = 1.0
    tokenizers_pool_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.tokenizers_pool_config is not None:
            theirs = "tokenizersPoolConfig is not supported; configure a token-producer plugin instead"
            raise _foreign("tokenizersPoolConfig", self.tokenizers_pool_config, "nothing", theirs)
        if self.kv_block_index_config.redis_config is not None:
            raise InvalidInputError(
                "kvBlockIndexConfig.redisConfig", "a mapping", "nothing: the index is in this process"
            )

    @property
    def weights(self) -> dict[Tier, float]:
        """How much is a block on each tier worth? Several media of one tier count as the best of them.

        A medium that no table of the engines' media knows is left out: no event can bring it (see `tier_of`).

        >>> IndexerParameters().weights
        {<Tier.DEVICE: 1>: 1.0, <Tier.HOST: 2>: 0.8}
        """
        found: dict[Tier, float] = {}
        for backend in self.kv_cache_backend_configs:
            tier = tier_of(backend.name)
            if tier is not None:
                found[tier] = max(backend.weight, found.get(tier, backend.weight))
        return found


class PodDiscoveryParameters(_Parameters, frozen=True, kw_only=True, rename="camel"):
    """Where do pods publish their events? For whoever opens the sockets."""

    pod_label_selector: str = "llm-d.ai/inference-serving=true"
    pod_namespace: str = ""
    socket_port: _Port = 5557
    replay_socket_port: int = 0


class EventsParameters(_Parameters, frozen=True, kw_only=True, rename="camel"):
    """Whose events are they, and where do they come from? All but ``engineType`` is for whoever opens the sockets."""

    zmq_endpoint: str = ""
    topic_filter: str = "kv@"
    concurrency: _Count = 4
    engine_type: str = ""
    discover_pods: bool = True
    pod_discovery_config: PodDiscoveryParameters = msgspec.field(default_factory=PodDiscoveryParameters)
    tracing: bool = False

    def __post_init__(self) -> None:
        if self.engine_type not in ("", "vllm", "sglang"):
            theirs = f'unsupported engine type: "{self.engine_type}"'
            raise _foreign("engineType", self.engine_type, "'vllm' or 'sglang'", theirs)

    @property
    def engine(self) -> str:
        """Whose events are they? vLLM's where nothing is said."""
        return self.engine_type or "vllm"


class PreciseParameters(_Parameters, frozen=True, kw_only=True, rename="camel"):
    """How is the precise prefix index of an llm-d configuration set up?

    ``speculativeIndexing`` takes a prompt to be where it was sent until an event says so, for ``speculativeTTL``, a
    duration as Go writes it.

    >>> parameters = PreciseParameters.read({"tokenProcessorConfig": {"blockSize": 64}, "speculativeTTL": "1m30s"})
    >>> parameters.token_processor_config.tokens_per_block, parameters.ttl
    (64, 90.0)
    >>> PreciseParameters.read({"kvEventsConfig": {"engineType": "abacus"}})
    Traceback (most recent call last):
    ...
    inferencesched.errors.InvalidInputError: kvEventsConfig.engineType: got 'abacus', allowed: 'vllm' or 'sglang' (llm-d: unsupported engine type: "abacus")
    """

    token_processor_config: TokenProcessorParameters = msgspec.field(default_factory=TokenProcessorParameters)
    indexer_config: IndexerParameters = msgspec.field(default_factory=IndexerParameters)
    kv_events_config: EventsParameters = msgspec.field(default_factory=EventsParameters)
    speculative_indexing: bool = False
    speculative_ttl: str = msgspec.field(default="", name="speculativeTTL")

    def __post_init__(self) -> None:
        if self.speculative_ttl and self.speculative_indexing:
            self._ttl()

    @property
    def ttl(self) -> float:
        """How long does an unconfirmed entry last? Seconds; 2 where nothing more than 0 is said."""
        return self._ttl()

    def _ttl(self) -> float:
        if not self.speculative_ttl:
            return 2.0
        seconds = go_duration(self.speculative_ttl)
        if seconds is None:
            theirs = f'invalid speculativeTTL "{self.speculative_ttl}"'
            raise _foreign("speculativeTTL", self.speculative_ttl, "a duration such as '2s' or '1m30s'", theirs)
        return seconds if seconds > 0 else 2.0


def go_duration(text: str) -> float | None:
    """How many seconds is a duration that is written as Go writes it? None where it is none.

    >>> go_duration("1h15m30.5s"), go_duration("-1.5ms"), go_duration("0"), go_duration("2")
    (4530.5, -0.0015, 0.0, None)
    """
    sign, digits = (-1.0, text[1:]) if text[:1] == "-" else (1.0, text[1:] if text[:1] == "+" else text)
    if digits == "0":
        return 0.0
    parts = _PART.findall(digits)
    if not parts or "".join(number + unit for number, unit in parts) != digits:
        return None
    return sign * sum(float(number) * _UNITS[unit] for number, unit in parts)


def _known(said: float | None) -> int:
    """Return what an endpoint says as a number, 0 where it says nothing."""
    return int(said) if said is not None and said > 0 else 0


def _foreign(parameter: str, value: object, allowed: str, theirs: str) -> InvalidInputError:
    """Return the error that also has llm-d's own words, which people search for."""
    return InvalidInputError(parameter, value, f"{allowed} (llm-d: {theirs})")


def _without_nulls(raw: Any) -> Any:
    if isinstance(raw, Mapping):
        return {str(name): _without_nulls(value) for name, value in raw.items() if value is not None}
    return [_without_nulls(each) for each in raw] if isinstance(raw, list | tuple) else raw


def _refused(struct: type[msgspec.Struct], said: Any, error: msgspec.ValidationError) -> InvalidInputError:
    """Return our error for msgspec's: the path, the value at its end, and what was allowed there."""
    words, _, path = str(error).partition(" - at ")
    place = path.strip("`").removeprefix("$").removeprefix(".")
    if isinstance(error.__cause__, InvalidInputError):
        cause = error.__cause__
        return InvalidInputError(f"{place}.{cause.parameter}".lstrip("."), cause.value, cause.allowed)
    field = re.fullmatch(r"Object (contains unknown|missing required) field `(.*)`", words)
    if field is None:
        here, _ = _at(struct, said, place)
        return InvalidInputError(place or "parameters", here, words.removeprefix("Expected ").partition(", got ")[0])
    here, there = _at(struct, said, place)
    allowed = "a value" if field[1] == "missing required" else f"no such parameter; there are {', '.join(there)}"
    return InvalidInputError(f"{place}.{field[2]}".lstrip("."), here.get(field[2]), allowed)


def _at(struct: type[msgspec.Struct], said: Any, place: str) -> tuple[Any, tuple[str, ...]]:
    """Return what is said at such a path (names with dots between, numbers of a list in brackets), and the names there."""
    for name, number in re.findall(r"([^.\[\]]+)|\[(\d+)\]", place):
        said = said[int(number)] if number else said[name]
        if name:
            fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
            inner = [kind for kind in (fields[name], *get_args(fields[name])) if _is_struct(kind)]
            struct = inner[0] if inner else struct
    return said, tuple(field.encode_name for field in msgspec.structs.fields(struct))


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
