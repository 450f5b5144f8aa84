"""How long does a pass take: the published formulas and figures, and nothing that beats the hardware."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.simulator import TIMINGS, ClosedForm, DynamoMocker, EngineConfig, timing
from inferencesched.simulator.engine import LLAMA_8B_H100, step_ms

MOCKER = timing("dynamo-mocker")
H100 = timing("llama-3.1-8b-h100")
HARDWARE = [pytest.param(model, id=name) for name, model in TIMINGS.items() if isinstance(model, ClosedForm)]

#: Fitted coefficients as published: c0, w, b, a, k, r; what was measured, and the bounds of one accelerator of it.
PUBLISHED = {
    "llama-3.1-8b-h100": (2.785, 3.784, 0.01976, 7.893e-7, 4.223e-5, 0.005683),
    "llama-3.1-8b-h100-sglang": (2.633, 4.022, 0.02063, 8.468e-7, 4.221e-5, 0.003363),
    "llama-3.1-8b-h100-trtllm": (3.345, 3.403, 0.02027, 9.678e-7, 4.285e-5, 0.003379),
    "llama-3.1-8b-a100": (7.320, 4.462, 0.05517, 2.938e-6, 8.393e-5, 0.008939),
    "llama-3.1-8b-l40s": (8.213, 14.90, 0.06825, 2.861e-6, 1.954e-4, 0.01798),
    "llama-3.1-8b-h200": (2.095, 2.973, 0.01979, 7.972e-7, 3.031e-5, 0.005555),
    "llama-3.1-8b-b200": (2.551, 0.9795, 0.009731, 4.021e-7, 1.832e-5, 0.0),
    "llama-3.1-70b-h100-tp4": (7.205, 8.660, 0.06157, 9.796e-7, 2.774e-5, 0.008844),
    "llama-3.1-70b-h100-tp8": (8.493, 1.834, 0.03815, 4.747e-7, 1.461e-5, 0.0),
    "llama-3.1-70b-h200-tp4": (5.750, 6.908, 0.06054, 9.948e-7, 1.955e-5, 0.005892),
    "qwen3-32b-h100-tp2": (7.464, 7.267, 0.04943, 1.602e-6, 4.194e-5, 0.002754),
    "qwen3-8b-h100": (4.481, 2.572, 0.01945, 8.913e-7, 4.690e-5, 0.001759),
}

#: Memory bandwidth in TB/s and dense 16-bit TFLOP/s, from the vendor's data sheets.
CHIPS = {"h100": (3.35, 989.5), "h200": (4.8, 989.5), "a100": (2.039, 312), "l40s": (0.864, 362), "b200": (8.0, 2250)}
#: Billions of parameters; bytes of keys and values a token: 2 of them, layers, KV heads, 128 wide, 2 bytes each.
MODELS = {
    "llama-3.1-8b": (8.03, 2 * 32 * 8 * 128 * 2),
    "llama-3.1-70b": (70.6, 2 * 80 * 8 * 128 * 2),
    "qwen3-32b": (32.8, 2 * 64 * 8 * 128 * 2),
    "qwen3-8b": (8.19, 2 * 36 * 8 * 128 * 2),
}


# --- figures of the sources --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "fit", "mocker"), [(512, 13.1, 24.4), (2048, 44.9, 49.4), (8192, 191.1, 169.1), (32768, 1074.0, 966.1)]
)
def test_prefill_takes_what_the_sources_say(tokens, fit, mocker):
    assert step_ms(H100, prefill=((0, tokens),)) == pytest.approx(fit, abs=0.051)
    assert step_ms(MOCKER, prefill=((0, tokens),)) == pytest.approx(mocker, abs=0.051)


def test_a_long_prompt_in_chunks_is_quicker_in_the_mocker():
    """Its polynomial is quadratic in the new tokens of a pass, and does not know what came before them."""
    chunks = [step_ms(MOCKER, prefill=((8192 * i, 8192),)) for i in range(4)]
    assert sum(chunks) == pytest.approx(677, abs=0.5)
    assert sum(step_ms(H100, prefill=((8192 * i, 8192),)) for i in range(4)) == pytest.approx(
        step_ms(H100, prefill=((0, 32768),)), rel=0.03
    )


@pytest.mark.parametrize(
    ("sequences", "context", "fit", "mocker"),
    [(1, 1024, 6.62, 5.79), (32, 4096, 12.29, 12.09), (64, 8192, 29.1, 26.3), (256, 1024, 20.7, 17.6)],
)
def test_a_decode_step_takes_what_the_sources_say(sequences, context, fit, mocker):
    places = 0.0051 if fit < 20 else 0.051
    assert step_ms(H100, decode=(context,) * sequences) == pytest.approx(fit, abs=places)
    assert step_ms(MOCKER, decode=(context,) * sequences) == pytest.approx(mocker, abs=places)


def test_the_mocker_decodes_slower_with_a_smaller_cache():
    """A trap of its source: the share of the cache decides, so 400 k tokens of KV read 30 ms where 1.05 M read 17.6."""
    small = EngineConfig(kv_blocks=6250)
    assert step_ms(MOCKER, decode=(1024,) * 256, config=small) == pytest.approx(30, abs=0.5)
    full = step_ms(MOCKER, decode=(small.kv_tokens,), config=small)
    assert full == pytest.approx(-25.74 + 54.01 + 5.74, rel=1e-14)
    assert step_ms(MOCKER, decode=(2 * small.kv_tokens,), config=small) == full, "a share above 1 counts as 1"


def test_every_published_set_is_there_as_published():
    found = {
        name: tuple(getattr(model, field.name) for field in fields(model)[1:7])
        for name, model in TIMINGS.items()
        if name != "dynamo-mocker"
    }
    assert found == PUBLISHED
    assert isinstance(MOCKER, DynamoMocker) and all(name == model.name for name, model in TIMINGS.items())


# --- the formulas ------------------------------------------------------------------------------------------------

CHUNKS = st.lists(st.tuples(st.integers(0, 60_000), st.integers(1, 8192)), max_size=5).map(tuple)
LENGTHS = st.lists(st.integers(1, 60_000), max_size=9).map(tuple)


@given(CHUNKS, LENGTHS, st.sampled_from([1000, 16_384]))
def test_the_polynomial(chunks, lengths, blocks):
    """Means over the chunks are whole numbers: that is how the mocker takes them."""
    expected = 0.0
    if chunks:
        mean_end = sum(before + new for before, new in chunks) // len(chunks)
        mean_before = sum(before for before, _ in chunks) // len(chunks)
        n = len(chunks) * (mean_end - mean_before)
        expected += 4.209989e-7 * n**2 + 1.518344e-2 * n + 16.50142
    if lengths:
        p = min(1.0, sum(lengths) / (blocks * 64))
        expected += max(1.0, -25.74 * p**2 + 54.01 * p + 5.74)
    config = EngineConfig(kv_blocks=blocks)
    assert step_ms(MOCKER, prefill=chunks, decode=lengths, config=config) == pytest.approx(expected, rel=1e-12)


@given(CHUNKS, LENGTHS, st.sampled_from(sorted(PUBLISHED)))
def test_the_closed_form(chunks, lengths, name):
    c0, w, b, a, k, r = PUBLISHED[name]
    new = sum(n for _, n in chunks) + len(lengths)
    pairs = sum(n * (p + n / 2) for p, n in chunks)
    expected = c0 + (w**4 + (b * new) ** 4) ** 0.25 + a * pairs + k * sum(lengths) + r * len(lengths)
    assert step_ms(timing(name), prefill=chunks, decode=lengths) == pytest.approx(expected, rel=1e-12)


@given(CHUNKS, LENGTHS)
def test_no_pass_of_any_set_beats_the_roofline(chunks, lengths):
    """Reading the weights and the context once, and 2 FLOP a parameter and new token, take their time on any engine."""
    new = sum(n for _, n in chunks) + len(lengths)
    for name in PUBLISHED:
        model, chip = split(name)
        ways = int(name.rpartition("-tp")[2]) if "-tp" in name else 1
        (parameters, kv_bytes), (terabytes, teraflops) = MODELS[model], CHIPS[chip]
        memory = (2e9 * parameters + kv_bytes * sum(lengths)) / (terabytes * 1e12 * ways) * 1e3
        compute = 2e9 * parameters * new / (teraflops * 1e12 * ways) * 1e3
        assert step_ms(timing(name), prefill=chunks, decode=lengths) >= max(memory, compute)


def split(name):
    """The model's and the chip's part of a name."""
    model = next(model for model in MODELS if name.startswith(model))
    return model, name.removeprefix(f"{model}-").split("-")[0]


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", HARDWARE)
def test_a_set_that_beats_the_roofline_is_refused(model):
    assert set(model.hardware.floors()) == {"c0 + w", "b", "a", "k"}
    for term, floor in model.hardware.floors().items():
        assert floor > 0
        names = ("c0", "w") if term == "c0 + w" else (term,)
        at = {name: floor / len(names) * 1.000001 for name in names}
        assert replace(model, **at), "at the floor"
        below = {name: floor / len(names) * 0.999 for name in names}
        with pytest.raises(InvalidInputError) as error:
            replace(model, **below)
        assert error.value.parameter == term and error.value.value == pytest.approx(0.999 * floor)
        assert str(error.value).endswith(f"allowed: at least {floor:.4g} ms, the roofline of the hardware")


def test_the_floors_of_an_h100_are_those_of_its_data_sheet():
    assert LLAMA_8B_H100.floors() == pytest.approx(
        {
            "c0 + w": 2 * 8.03e9 / 3.35e12 * 1e3,
            "b": 2 * 8.03e9 / 989.5e12 * 1e3,
            "a": 4 * 32 * 4096 / 989.5e12 * 1e3,
            "k": 131_072 / 3.35e12 * 1e3,
        }
    )
    assert LLAMA_8B_H100.floors()["c0 + w"] == pytest.approx(4.8, abs=0.01)
    both = replace(LLAMA_8B_H100, ways=2)
    assert {term: 2 * floor for term, floor in both.floors().items()} == pytest.approx(dict(LLAMA_8B_H100.floors()))


def test_a_set_of_no_hardware_is_held_to_no_roofline():
    free = ClosedForm("free", 0.0, 0.0, 1e-3, 0.0, 0.0, 0.0)
    assert step_ms(free, prefill=((0, 1000),)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["c0", "w", "b", "a", "k", "r"])
@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_a_coefficient_is_a_finite_number_of_at_least_0(name, value):
    with pytest.raises(InvalidInputError, match=f"^{name}: got {value}, allowed: a finite number of at least 0$"):
        replace(H100, **{name: value})


@pytest.mark.parametrize("name", ["kv_blocks", "block_size", "max_sequences", "max_tokens"])
@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan")])
def test_a_server_holds_a_whole_number_of_everything(name, value):
    with pytest.raises(InvalidInputError, match=f"^{name}: got {value}, allowed: an integer of at least 1$"):
        EngineConfig(**{name: value})


def test_defaults_are_those_of_the_mocker():
    assert EngineConfig() == EngineConfig(
        kv_blocks=16_384, block_size=64, max_sequences=256, max_tokens=8_192, prefix_caching=True
    )
    assert EngineConfig().kv_tokens == 1_048_576


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("dynamo-mocker", "dynamo-mocker"),
        ("llama-3.1-8b-h100", "llama-3.1-8b-h100"),
        ("llama-3.1-8b-h100-vllm", "llama-3.1-8b-h100"),
        ("llama-3.1-8b-h100-tp1-vllm", "llama-3.1-8b-h100"),
        ("llama-3.1-8b-h100-tp1-sglang", "llama-3.1-8b-h100-sglang"),
        ("llama-3.1-70b-h100-tp4-vllm", "llama-3.1-70b-h100-tp4"),
    ],
)
def test_a_name_may_say_what_goes_without_saying(name, found):
    assert timing(name) is TIMINGS[found]


@pytest.mark.parametrize("name", ["", "h100", "llama-3.1-8b", "llama-3.1-8b-h100-tp2", "LLAMA-3.1-8B-H100"])
def test_an_unknown_timing_lists_the_names_there_are(name):
    with pytest.raises(UnknownNameError) as error:
        timing(name)
    assert str(error.value) == f"timing: got {name!r}, allowed: one of {', '.join(TIMINGS)}"


def test_the_names_cannot_be_changed():
    with pytest.raises(TypeError):
        TIMINGS["mine"] = H100
