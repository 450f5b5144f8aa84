"""Does any body do more than be read or be refused, and is a model's name ever cut in where it does not belong?

    python tests/fuzz/fuzz_bodies.py --seconds 60 [--seed 0]

A finding is any exception but `BodyError`, and a spliced body that is not the same JSON with another model.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from inferencesched.errors import BodyError
from inferencesched.routing.body import parse_body
from inferencesched.routing.tokens import ByteTokenizer
from tests.fuzz import texts

KINDS = ("chat", "completions", "responses", "embeddings", "messages", "vllm_generate", "sglang_generate")
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"model": "no"}}}]
SEEDS: list[dict[str, Any]] = [
    {"model": "m", "messages": [{"role": "system", "content": "Be."}, {"role": "user", "content": 'Hi "you"\n'}]},
    {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "42"},
        ],
        "tools": TOOLS,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 5,
        "model": "é",
    },
    {"model": "m", "prompt": "Once", "max_tokens": 5, "n": 2, "cache_salt": "s"},
    {"model": "m", "prompt": ["a", "b"]},
    {"model": "m", "prompt": [1, 2, 3]},
    {"model": "m", "prompt": [[1, 2], [3]]},
    {"model": "m", "input": "Hi", "instructions": "Be."},
    {
        "model": "m",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "function_call_output", "output": "y"},
        ],
    },
    {
        "model": "m",
        "system": [{"type": "text", "text": "s"}],
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 9,
    },
    {"model": "m", "token_ids": [1, 2], "sampling_params": {"max_tokens": 3, "n": 1}},
    {"text": "x", "sampling_params": {"max_new_tokens": 3}, "image_data": "u", "rid": "model"},
    {"input_ids": [1, 2, 3], "model": "m"},
]
BODIES = [json.dumps(seed).encode() for seed in SEEDS]
TOKENIZER = ByteTokenizer()


def look(raw: bytes, rng: random.Random) -> str:
    """Read a body as one of the kinds, and cut into it."""
    try:
        body = parse_body(raw, rng.choice(KINDS), max_bytes=1 << 20)  # type: ignore[arg-type]  # one of them
    except BodyError:
        return "refused"
    changed = body.with_model("another")
    check_model(raw, changed)
    try:
        prompt = body.prompt()
        ids = TOKENIZER.encode(body)
        assert body.tokens is not None or prompt == b"" or len(ids)
        seen = body.texts()
        assert len(body.blocks) >= bool(seen)
        assert prompt.startswith(body.opening()[: max(0, len(body.opening()) - 8)]) or body.has_media
    except BodyError:
        return "read, and refused later"
    assert body.with_texts(seen) == raw
    if seen:
        other = tuple(f"<{text}>" for text in seen)
        try:
            again = parse_body(body.with_texts(other), body.kind, max_bytes=8 << 20)
        except BodyError:
            return "read, and refused later"
        assert again.texts() == other, (again.texts(), other)
    return "read"


def check_model(raw: bytes, changed: bytes) -> None:
    """Both are the same JSON but for the model, which is the last one that a reader would see."""
    before, after = json.loads(raw), json.loads(changed)
    assert after["model"] == "another", changed
    before.pop("model", None)
    del after["model"]
    assert json.dumps(before) == json.dumps(after)


if __name__ == "__main__":
    sys.exit(texts.main(__doc__ or "", BODIES, look))
