"""How is a simulated server set up, and how long does one of its passes take?

Two step-time models. ``dynamo-mocker`` is the polynomial of NVIDIA Dynamo's mocker, so that replays can be held against
it. The others are a closed form of six coefficients, fitted by the source named below to measured kernels; a set that
would beat its own hardware's roofline is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from inferencesched._kernels import serving
from inferencesched._kernels import serving_state as columns
from inferencesched._typing import FloatArray
from inferencesched.errors import InvalidInputError, UnknownNameError, not_negative, whole_number


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How much does one server hold and do at once?

    ``kv_blocks`` of ``block_size`` tokens; up to ``max_sequences`` requests run together, and one pass takes
    up to ``max_tokens`` new tokens (chunked prefill). Defaults are those of Dynamo's mocker. ``ordered`` has its line stand in the
    order that the gateway asks for (vLLM's priority scheduling), not in that of arrival.

    LoRA: ``adapter_slots`` adapters at once (0: adapters cost nothing), ``adapter_ms`` to load one, in which its pass waits. Offload:
    ``host_blocks`` evicted blocks are kept in the host's memory, the least recently used making room, and are fetched at ``block_ms``
    each in the pass that needs them.
    """

    kv_blocks: int = 16_384
    block_size: int = 64
    max_sequences: int = 256
    max_tokens: int = 8_192
    prefix_caching: bool = True
    ordered: bool = False
    adapter_slots: int = 0
    adapter_ms: float = 0.0
    host_blocks: int = 0
    block_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("kv_blocks", "block_size", "max_sequences", "max_tokens"):
            whole_number(name, getattr(self, name), low=1)
        for name in ("adapter_slots", "host_blocks"):
            whole_number(name, getattr(self, name))
        for name in ("adapter_ms", "block_ms"):
            not_negative(name, getattr(self, name), " of ms")

    @property
    def kv_tokens(self) -> int:
        """How many tokens fit into one server's KV cache?"""
        return self.kv_blocks * self.block_size


@dataclass(frozen=True, slots=True)
class Model:
    """What does a dense model weigh, and what does a token cost? Parameters, layers, width and KV heads; 2 bytes each."""

    parameters: float
    layers: int
    width: int
    kv_heads: int
    head_size: int = 128

    @property
    def weight_bytes(self) -> float:
        """How many bytes must every pass read?"""
        return 2.0 * self.parameters

    @property
    def kv_bytes(self) -> float:
        """How many bytes of keys and values does one token hold?"""
        return 2.0 * self.layers * self.kv_heads * self.head_size * 2.0


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What are the hardware's bounds? Bytes per second of memory, dense 16-bit FLOP per second."""

    bandwidth: float
    flops: float


@dataclass(frozen=True, slots=True)
class Hardware:
    """Which model on which accelerators? ``ways`` is the tensor parallelism: all of them share the work evenly."""

    model: Model
    accelerator: Accelerator
    ways: int = 1

    def floors(self) -> Mapping[str, float]:
        """What is the least that each term of the closed form can cost, ms?

        Every pass reads the weights; a decode reads its context's KV; a token costs 2 FLOP a parameter, a pair of
        query and key 4 FLOP a layer and unit of width. A sum of terms above these floors is above the roofline.
        """
        model, chip = self.model, self.accelerator
        bandwidth, flops = chip.bandwidth * self.ways / 1e3, chip.flops * self.ways / 1e3
        return {
            "c0 + w": model.weight_bytes / bandwidth,
            "b": 2.0 * model.parameters / flops,
            "a": 4.0 * model.layers * model.width / flops,
            "k": model.kv_bytes / bandwidth,
        }


@dataclass(frozen=True, slots=True)
class DynamoMocker:
    """How long does a pass take in Dynamo's mocker, ms?

    Prefill ``4.209989e-7 n^2 + 1.518344e-2 n + 16.50142`` for n new prompt tokens; decode
    ``max(1, -25.74 p^2 + 54.01 p + 5.74)`` for a share p of the KV cache that the decoding requests fill. The decode
    time depends on the configured size of the cache, so a smaller cache looks slower.
    Source: ai-dynamo, ``lib/mocker``, 1.6.1, the polynomial timing model; no hardware is meant, so no roofline is held.
    """

    name: str = "dynamo-mocker"

    def parameters(self) -> tuple[int, FloatArray]:
        """Return the kernel's kind and coefficients."""
        return columns.POLYNOMIAL, np.array([4.209989e-7, 1.518344e-2, 16.50142, -25.74, 54.01, 5.74, 1.0])


@dataclass(frozen=True, slots=True)
class ClosedForm:
    """How long does a pass take on this hardware, ms?

    ``c0 + (w^4 + (b N)^4)^(1/4) + a A + k K + r B``: N new tokens (a decode is one), A query-key pairs of the prefill
    chunks (n (p + n/2) for n tokens after p), K tokens that the B decodes attend to. The fourth-power sum is a smooth
    maximum of reading the weights and computing with them.

    Errors: `InvalidInputError` for a coefficient below its floor (`Hardware.floors`): nothing beats the roofline.

    >>> h100 = timing("llama-3.1-8b-h100")
    >>> round(step_ms(h100, prefill=((0, 2048),)), 1), round(step_ms(h100, decode=(1024,)), 2)
    (44.9, 6.62)
    >>> ClosedForm("too-good", 0.1, 1.0, 0.02, 8e-7, 4.3e-5, 0.0, LLAMA_8B_H100)
    Traceback (most recent call last):
    ...
    inferencesched.errors.InvalidInputError: c0 + w: got 1.1, allowed: at least 4.794 ms, the roofline of the hardware
    """

    name: str
    c0: float
    w: float
    b: float
    a: float
    k: float
    r: float
    hardware: Hardware | None = None

    def __post_init__(self) -> None:
        for name in ("c0", "w", "b", "a", "k", "r"):
            not_negative(name, getattr(self, name))
        if self.hardware is not None:
            values = {"c0 + w": self.c0 + self.w, "b": self.b, "a": self.a, "k": self.k}
            for name, floor in self.hardware.floors().items():
                if values[name] < floor:
                    allowed = f"at least {floor:.4g} ms, the roofline of the hardware"
                    raise InvalidInputError(name, values[name], allowed)

    def parameters(self) -> tuple[int, FloatArray]:
        """Return the kernel's kind and coefficients."""
        return columns.CLOSED_FORM, np.array([self.c0, self.w, self.b, self.a, self.k, self.r, 0.0])


StepTime = DynamoMocker | ClosedForm

_LLAMA_8B = Model(8.03e9, 32, 4096, 8)
_LLAMA_70B = Model(70.6e9, 80, 8192, 8)
_QWEN_32B = Model(32.8e9, 64, 8192, 8)
_QWEN_8B = Model(8.19e9, 36, 4096, 8)
_H100 = Accelerator(3.35e12, 989.5e12)
_H200 = Accelerator(4.8e12, 989.5e12)
_A100 = Accelerator(2.039e12, 312e12)
_L40S = Accelerator(0.864e12, 362e12)
_B200 = Accelerator(8.0e12, 2250e12)

LLAMA_8B_H100: Final = Hardware(_LLAMA_8B, _H100)

# Fitted to the kernel measurements that NVIDIA AIConfigurator 0.12 ships (304 points a set: prefill of 1 to 16 k
# new after 0 to 64 k cached tokens, decode of 1 to 256 sequences, mixed); mean error 1.9 to 4.4 %, worst point 20 %.
# GPU time only: no HTTP, no tokenizer. A mixture of experts does not fit this form (26 %) and is left out.
_FITTED: Final = (
    ClosedForm("llama-3.1-8b-h100", 2.785, 3.784, 0.01976, 7.893e-7, 4.223e-5, 0.005683, LLAMA_8B_H100),
    ClosedForm("llama-3.1-8b-h100-sglang", 2.633, 4.022, 0.02063, 8.468e-7, 4.221e-5, 0.003363, LLAMA_8B_H100),
    ClosedForm("llama-3.1-8b-h100-trtllm", 3.345, 3.403, 0.02027, 9.678e-7, 4.285e-5, 0.003379, LLAMA_8B_H100),
    ClosedForm("llama-3.1-8b-a100", 7.320, 4.462, 0.05517, 2.938e-6, 8.393e-5, 0.008939, Hardware(_LLAMA_8B, _A100)),
    ClosedForm("llama-3.1-8b-l40s", 8.213, 14.90, 0.06825, 2.861e-6, 1.954e-4, 0.01798, Hardware(_LLAMA_8B, _L40S)),
    ClosedForm("llama-3.1-8b-h200", 2.095, 2.973, 0.01979, 7.972e-7, 3.031e-5, 0.005555, Hardware(_LLAMA_8B, _H200)),
    ClosedForm("llama-3.1-8b-b200", 2.551, 0.9795, 0.009731, 4.021e-7, 1.832e-5, 0.0, Hardware(_LLAMA_8B, _B200)),
    ClosedForm(
        "llama-3.1-70b-h100-tp4", 7.205, 8.660, 0.06157, 9.796e-7, 2.774e-5, 0.008844, Hardware(_LLAMA_70B, _H100, 4)
    ),
    ClosedForm(
        "llama-3.1-70b-h100-tp8", 8.493, 1.834, 0.03815, 4.747e-7, 1.461e-5, 0.0, Hardware(_LLAMA_70B, _H100, 8)
    ),
    ClosedForm(
        "llama-3.1-70b-h200-tp4", 5.750, 6.908, 0.06054, 9.948e-7, 1.955e-5, 0.005892, Hardware(_LLAMA_70B, _H200, 4)
    ),
    ClosedForm(
        "qwen3-32b-h100-tp2", 7.464, 7.267, 0.04943, 1.602e-6, 4.194e-5, 0.002754, Hardware(_QWEN_32B, _H100, 2)
    ),
    ClosedForm("qwen3-8b-h100", 4.481, 2.572, 0.01945, 8.913e-7, 4.690e-5, 0.001759, Hardware(_QWEN_8B, _H100)),
)

#: Every step-time model by name: ``dynamo-mocker`` and ``<model>-<gpu>[-tpN][-engine]``.
TIMINGS: Final[Mapping[str, StepTime]] = MappingProxyType({model.name: model for model in (DynamoMocker(), *_FITTED)})


def timing(name: str) -> StepTime:
    """Which step-time model has this name? ``-tp1`` and ``-vllm`` are understood, and left out of the answer's name.

    Errors: `UnknownNameError` lists the names there are.

    >>> timing("llama-3.1-8b-h100-tp1-vllm").name
    'llama-3.1-8b-h100'
    """
    short = "-".join(part for part in name.split("-") if part not in ("tp1", "vllm"))
    found = TIMINGS.get(name) or TIMINGS.get(short)
    if found is None:
        raise UnknownNameError("timing", name, list(TIMINGS))
    return found


def step_ms(
    model: StepTime,
    *,
    prefill: tuple[tuple[int, int], ...] = (),
    decode: tuple[int, ...] = (),
    config: EngineConfig | None = None,
) -> float:
    """How long would one pass take, ms?

    `prefill` is (tokens before, new tokens) of each chunk; `decode` is each decoding sequence's length.
    """
    config = EngineConfig() if config is None else config
    return serving.step_time(
        coefficients(model, config),
        config.kv_tokens,
        len(prefill),
        sum(before + new for before, new in prefill),
        sum(before for before, _ in prefill),
        sum(new for _, new in prefill) + len(decode),
        float(sum(new * (before + new / 2) for before, new in prefill)),
        sum(decode),
        len(decode),
    )


def settings(config: EngineConfig, servers: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return the kernel's config for so many servers, ``int64[7]``."""
    sizes = (config.block_size, config.max_sequences, config.max_tokens)
    ways = (config.prefix_caching, config.ordered, config.adapter_slots, servers if config.host_blocks else 0)
    return np.array((*sizes, *ways), dtype=np.int64)


def coefficients(model: StepTime, config: EngineConfig) -> FloatArray:
    """Return the kernel's row for a server with this step time, ``float64[10]``."""
    kind, found = model.parameters()
    return np.append(found, (float(kind), config.adapter_ms, config.block_ms))
