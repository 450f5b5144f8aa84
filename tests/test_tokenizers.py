"""A model's own tokenizer, a small one made here."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from inferencesched.adapters.tokenizers import CHATML, GEMMA, HuggingFaceTokenizer
from inferencesched.routing.body import parse_body
from tests.director_parts import chat, director


@pytest.fixture(name="file", scope="module")
def _file(tmp_path_factory):
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    special = ["<|im_start|>", "<|im_end|>"]
    words = ["the quick brown fox jumps over the lazy dog", "system user assistant"] * 20
    tokenizer.train_from_iterator(
        words, BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=ByteLevel.alphabet())
    )
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_a_chat_is_laid_out_and_tokenized(file):
    tokenizer = HuggingFaceTokenizer(file)
    messages = [{"role": "system", "content": "the quick"}, {"role": "user", "content": "brown fox"}]
    body = parse_body(json.dumps({"messages": messages}).encode(), "chat")
    text = "<|im_start|>system\nthe quick<|im_end|>\n<|im_start|>user\nbrown fox<|im_end|>\n<|im_start|>assistant\n"
    assert CHATML.laid_out(body) == text
    ids = tokenizer.encode(body)
    theirs = Tokenizer.from_file(str(file))
    assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids
    assert ids.dtype == "uint32"
    longer = parse_body(
        json.dumps({"messages": [*messages, {"role": "assistant", "content": "jumps"}]}).encode(), "chat"
    )
    shared = tokenizer.encode(longer)[: len(ids) - 4]
    assert shared.tolist() == ids[: len(shared)].tolist()
    assert GEMMA.laid_out(longer).endswith("<start_of_turn>model\njumps<end_of_turn>\n<start_of_turn>model\n")


def test_ids_and_plain_prompts_are_as_they_are(file):
    tokenizer = HuggingFaceTokenizer(file)
    assert tokenizer.encode(parse_body(b'{"prompt": [5, 6]}', "completions")).tolist() == [5, 6]
    plain = tokenizer.encode(parse_body(b'{"prompt": "the quick"}', "completions")).tolist()
    assert plain == Tokenizer.from_file(str(file)).encode("the quick").ids


def test_a_director_counts_with_it(file):
    tokenizer = HuggingFaceTokenizer(file)
    decision = director(tokenizer=tokenizer).decide(chat("the lazy dog"), {}, now=1.0, rng=np.random.default_rng(7))
    assert decision.request.input_tokens == len(tokenizer.encode(parse_body(chat("the lazy dog"), "chat")))
