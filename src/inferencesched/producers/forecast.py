"""How long will a request wait for its first token, and for each one after it, by what a step of the engine takes?

What a latency is foretold from (`features_of`), who may foretell it (`LatencyPredictor`), and a forecast from the step-time
models of the simulator.
"""

from dataclasses import dataclass
from math import nan
from typing import Final, NamedTuple, Protocol

import numpy as np

from inferencesched._kernels.serving_state import POLYNOMIAL
from inferencesched._typing import FloatArray
from inferencesched.endpoints import (
    CONTEXT_TOKENS,
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_CACHE_USAGE,
    PREFIX_TOKENS,
    RUNNING_REQUESTS,
    WAITING_QUEUE_SIZE,
    Endpoints,
)
from inferencesched.errors import whole_number
from inferencesched.normalize import known
from inferencesched.request import InferenceRequest
from inferencesched.signals import of_producer

#: The rows of a table of features, ``float64[F, E]``: the prompt's tokens and those to compute there; prompt tokens,
#: requests and context tokens in flight there, by our own books; what the server says of its queue, its batch and its KV
#: cache; and 1 for a server that only computes prompts.
INPUT, UNCACHED, QUEUED, REQUESTS, CONTEXT, WAITING, RUNNING, KV_USAGE, PREFILL_ROLE = range(9)
FEATURES: Final = 9


class LatencyPrediction(NamedTuple):
    """When will the first token come, and how long will each one after it take? ``float64[E]`` each, seconds; NaN is unknown."""

    ttft: FloatArray
    tpot: FloatArray


class LatencyOutcome(NamedTuple):
    """When did the first token come, and how long did each one after it take? Seconds; NaN is unknown."""

    ttft: float = nan
    tpot: float = nan


class LatencyPredictor(Protocol):
    """Who foretells latencies, and learns from how it went?"""

    def predict(self, features: FloatArray) -> LatencyPrediction:
        """Return what is expected of each endpoint, by a table of features ``float64[F, E]`` (`features_of`)."""
        ...

    def observe(self, features: FloatArray, outcome: LatencyOutcome) -> None:
        """Learn how one request went, with the features that its endpoint had when it was sent, ``float64[F]``."""
        ...


class TimingModel(Protocol):
    """What does a step of the engine take? The simulator's models are such: ``simulator.engine.timing(name)``."""

    def parameters(self) -> tuple[int, FloatArray]:
        """Return the kind, 0 the polynomials and 1 the closed form, and its coefficients, of milliseconds."""
        ...


def features_of(
    request: InferenceRequest, endpoints: Endpoints, *, prefix_producer: str = "", role_label: str = ""
) -> FloatArray:
    """What is known that latencies depend on? ``float64[F, E]``, a row a feature.

    Reads ``PREFIX_TOKENS`` (cycle; unknown covers nothing), ``INFLIGHT_TOKENS``, ``INFLIGHT_REQUESTS`` and
    ``CONTEXT_TOKENS`` (local), ``WAITING_QUEUE_SIZE``, ``RUNNING_REQUESTS`` and ``KV_CACHE_USAGE`` (scraped; unknown is
    NaN). A prompt of unknown length is NaN.
    """
    tokens = nan if request.prompt_tokens is None else float(request.prompt_tokens)
    features = np.empty((FEATURES, len(endpoints)))
    features[INPUT] = tokens
    features[UNCACHED] = np.maximum(0.0, tokens - known(endpoints[of_producer(PREFIX_TOKENS, prefix_producer)]))
    features[QUEUED] = endpoints[INFLIGHT_TOKENS]
    features[REQUESTS] = endpoints[INFLIGHT_REQUESTS]
    features[CONTEXT] = endpoints[CONTEXT_TOKENS]
    features[WAITING] = endpoints[WAITING_QUEUE_SIZE]
    features[RUNNING] = endpoints[RUNNING_REQUESTS]
    features[KV_USAGE] = endpoints[KV_CACHE_USAGE]
    features[PREFILL_ROLE] = endpoints.label(role_label, "prefill") if role_label else 0.0
    return features


@dataclass(frozen=True, slots=True)
class StepTimePredictor:
    """When would the first token come if the engine's steps took what the model says?

    The prompt tokens in flight are computed first, then this request's, at most `max_tokens` a step less one for each
    request that is decoding beside them; the first token comes at the end of the last of those steps. Where no prompt is in
    flight, half a decoding step passes before the next one starts. How many are decoding is not known, and taken from our
    own books: of the context in flight, the part that is not waiting to be computed. Time per output token is a decoding step
    with this request among the others.

    It needs no learning and sees no later arrivals, whose prompts will slow the decoding of this one. It leaves out the
    limit of sequences, preemption, and tokens of other prompts that share its last step, each of which makes it too quick.
    On an idle server it is exact; behind prompts that came at the same moment, no further off than one full step.

    Parameters
    ----------
    timing: the step-time model; ``simulator.engine.timing("llama-3.1-8b-h100")``, or any `TimingModel`.
    max_tokens: new tokens a step.
    kv_tokens: how many tokens the KV cache holds; the polynomials depend on it.

    Cost: some 50 us at 64 endpoints. Errors: `InvalidInputError` for numbers below 1.

    >>> from inferencesched.simulator.engine import timing
    >>> predictor = StepTimePredictor(timing("llama-3.1-8b-h100"))
    >>> features = np.zeros((FEATURES, 2))
    >>> features[[INPUT, UNCACHED]] = 2048
    >>> features[[QUEUED, CONTEXT], 1], features[REQUESTS, 1] = 8192, 1
    >>> predictor.predict(features).ttft.round(4)
    array([0.0449, 0.2361])
    """

    timing: TimingModel
    max_tokens: int = 8_192
    kv_tokens: int = 1_048_576

    def __post_init__(self) -> None:
        whole_number("max_tokens", self.max_tokens, low=1)
        whole_number("kv_tokens", self.kv_tokens, low=1)

    def predict(self, features: FloatArray) -> LatencyPrediction:
        """Return both, ``float64[E]``, seconds; NaN where the prompt's length is unknown."""
        kind, coefficients = self.timing.parameters()
        step = _Polynomials(coefficients, self.kv_tokens) if kind == POLYNOMIAL else _ClosedForm(coefficients)
        queued, own, context = features[QUEUED], features[UNCACHED], features[CONTEXT]
        attended = np.maximum(0.0, context - queued)
        decoding = features[REQUESTS] * attended / np.where(context > 0, context, 1.0)
        cached = features[INPUT] - own
        own = np.maximum(1.0, own)  # of a prompt that is all cached, the last token is computed
        budget = np.maximum(1.0, self.max_tokens - np.ceil(decoding))
        steps = np.maximum(1.0, np.ceil((queued + own) / budget))
        last = queued + own - (steps - 1.0) * budget
        pairs = own * (cached + 0.5 * own) + 0.5 * queued * context / np.maximum(1.0, features[REQUESTS])
        beside, alone = step.decode_ms(decoding, attended), np.zeros_like(own)
        waits = np.where((queued == 0) & (decoding > 0), 0.5 * (step.tokens_ms(alone, decoding) + beside), 0.0)
        ttft = waits + steps * beside + (steps - 1.0) * step.tokens_ms(budget, decoding)
        ttft = ttft + step.tokens_ms(last, decoding) + step.pairs_ms(pairs)
        with_it = decoding + 1.0
        tpot = step.tokens_ms(alone, with_it) + step.decode_ms(with_it, attended + features[INPUT])
        return LatencyPrediction(ttft / 1e3, tpot / 1e3)

    def observe(self, features: FloatArray, outcome: LatencyOutcome) -> None:
        """Nothing to learn: the model is given."""


class _ClosedForm:
    """``c0 + (w^4 + (b N)^4)^(1/4) + a A + k K + r B``, in parts: N tokens, A pairs, K context of B that decode; ms."""

    def __init__(self, coefficients: FloatArray) -> None:
        values: list[float] = coefficients[:6].tolist()
        self.c0, self.w, self.b, self.a, self.k, self.r = values

    def tokens_ms(self, tokens: FloatArray, decoding: FloatArray) -> FloatArray:
        either = self.w**4 + np.square(np.square(self.b * (tokens + decoding)))
        took: FloatArray = self.c0 + np.sqrt(np.sqrt(either))
        return took

    def decode_ms(self, decoding: FloatArray, context: FloatArray) -> FloatArray:
        return self.k * context + self.r * decoding

    def pairs_ms(self, pairs: FloatArray) -> FloatArray:
        """A sum over all chunks, however they are cut into steps."""
        return self.a * pairs


class _Polynomials:
    """``a2 n^2 + a1 n + a0`` for n prompt tokens, ``max(least, d2 p^2 + d1 p + d0)`` for a share p of the KV cache; ms."""

    def __init__(self, coefficients: FloatArray, kv_tokens: int) -> None:
        values: list[float] = coefficients.tolist()
        self.a2, self.a1, self.a0, self.d2, self.d1, self.d0, self.least = values
        self.kv_tokens = kv_tokens

    def tokens_ms(self, tokens: FloatArray, decoding: FloatArray) -> FloatArray:
        return np.where(tokens > 0, (self.a2 * tokens + self.a1) * tokens + self.a0, 0.0)

    def decode_ms(self, decoding: FloatArray, context: FloatArray) -> FloatArray:
        share = np.minimum(1.0, context / self.kv_tokens)
        return np.where(decoding > 0, np.maximum(self.least, (self.d2 * share + self.d1) * share + self.d0), 0.0)

    def pairs_ms(self, pairs: FloatArray) -> FloatArray:
        return np.zeros_like(pairs)
