"""What a server answers, and when another one is asked."""

import json
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from inferencesched.errors import InvalidInputError, UpstreamError
from inferencesched.lifecycle import RETRYABLE, ResponseReader, RetryPolicy
from inferencesched.request import Usage
from tests import naive_responses


def sse(*documents, end=b"data: [DONE]\n\n", newline=b"\n"):
    made = b"".join(b"data: " + json.dumps(each).encode() + newline * 2 for each in documents) + end
    return b"\xef\xbb\xbf" * 0 + made


def delta(text=None, **more):
    return {
        "id": "1",
        "model": "served",
        "choices": [{"index": 0, "delta": {"content": text} if text is not None else {"role": "assistant"}}],
        **more,
    }


CHAT = sse(
    delta(),
    delta("Hel"),
    delta("lo ü"),
    {"model": "served", "choices": [{"delta": {}, "finish_reason": "stop"}]},
    {
        "model": "served",
        "choices": [],
        "usage": {"prompt_tokens": 20, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 16}},
    },
)
MESSAGES = b"".join(
    b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode())
    for event in (
        {
            "type": "message_start",
            "message": {
                "model": "served",
                "usage": {"input_tokens": 4, "cache_read_input_tokens": 16, "output_tokens": 1},
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hel"}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "lo ü"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    )
)
RESPONSES = b"".join(
    b"event: x\r\ndata: %s\r\n\r\n" % json.dumps(event).encode()
    for event in (
        {"type": "response.created", "response": {"model": "served"}},
        {"type": "response.output_text.delta", "delta": "Hel"},
        {"type": "response.output_text.delta", "delta": "lo ü"},
        {
            "type": "response.completed",
            "response": {
                "usage": {"input_tokens": 20, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 16}}
            },
        },
    )
)
SGLANG = sse(
    {"text": "Hel", "meta_info": {"prompt_tokens": 20, "completion_tokens": 1, "cached_tokens": 16}},
    {"text": "Hello ü", "meta_info": {"prompt_tokens": 20, "completion_tokens": 2, "cached_tokens": 16}},
)
STREAMS = {"chat": CHAT, "messages": MESSAGES, "responses": RESPONSES, "sglang_generate": SGLANG}


def through(reader, whole, cuts=()):
    """Return out, text, tokens of an answer that comes in pieces."""
    places = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    told = [reader.feed(whole[begin:end]) for begin, end in pairwise(places)] + [reader.finish()]
    return b"".join(each.out for each in told), "".join(each.text for each in told), sum(each.tokens for each in told)


@pytest.mark.parametrize("kind", STREAMS)
@given(cuts=st.lists(st.integers(0, 900), max_size=12))
def test_however_an_answer_is_cut_it_is_the_same(kind, cuts):
    reader = ResponseReader(kind, streaming=True)
    assert through(reader, STREAMS[kind], cuts) == (STREAMS[kind], "Hello ü", 2)
    assert reader.usage == Usage(20, 2, 16)
    assert reader.done
    assert not reader.error


@given(st.lists(st.text(max_size=4), max_size=6), st.lists(st.integers(0, 900), max_size=6), st.booleans())
def test_a_chat_is_what_its_twin_reads(texts, cuts, ends):
    whole = sse(
        *map(delta, texts),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 7}},
        end=b"data: [DONE]\n\n" if ends else b"",
    )
    reader = ResponseReader("chat", streaming=True)
    out, text, pieces = through(reader, whole, cuts)
    wanted_text, wanted_pieces, usage, done = naive_responses.chat(whole)
    assert (out, text, pieces, reader.done) == (whole, wanted_text, wanted_pieces, done)
    assert reader.usage[:2] == (usage["prompt_tokens"], usage["completion_tokens"])
    assert bool(reader.error) == (not ends)


@pytest.mark.parametrize("kind", ["chat", "sglang_generate"])
@given(cuts=st.lists(st.integers(0, 900), max_size=12))
def test_the_clients_name_comes_back_and_nothing_else_changes(kind, cuts):
    whole = STREAMS[kind]
    reader = ResponseReader(kind, streaming=True, model="mine", served_model="served")
    out, text, tokens = through(reader, whole, cuts)
    assert out == whole.replace(b'"model": "served"', b'"model": "mine"')
    assert (text, tokens, reader.done) == ("Hello ü", 2, True)


def test_a_document_is_read_and_given_its_name_back():
    document = {
        "model": "served",
        "x": 1.50,
        "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    whole = json.dumps(document).encode()
    reader = ResponseReader("chat", streaming=False, model="mine", served_model="served")
    out, text, tokens = through(reader, whole, [5, 17])
    assert out == whole.replace(b'"served"', b'"mine"')
    assert (text, tokens, reader.usage[:2], reader.finish_reason, reader.done) == ("Hi", 1, (3, 1), "stop", True)
    plain = ResponseReader("chat", streaming=False)
    assert plain.feed(whole[:9]).out == whole[:9]
    others = {
        "completions": {"choices": [{"text": "Hi"}]},
        "messages": {"type": "message", "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn"},
        "responses": {"output": [{"content": [{"type": "output_text", "text": "Hi"}]}]},
        "vllm_generate": {"choices": [{"token_ids": [1, 2]}]},
        "embeddings": {"data": [], "usage": {"prompt_tokens": 3}},
    }
    for kind, said in others.items():
        reader = ResponseReader(kind, streaming=False)
        _, text, tokens = through(reader, json.dumps(said).encode())
        assert reader.done
        assert (text, tokens) == {"vllm_generate": ("", 2), "embeddings": ("", 0)}.get(kind, ("Hi", 1))


def test_a_role_is_no_token():
    reader = ResponseReader("chat", streaming=True)
    assert reader.feed(sse(delta(), end=b"")).tokens == 0
    assert reader.feed(sse(delta("x"), end=b"")).tokens == 1


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        (sse(delta("x"), end=b""), "ended before its end"),
        (sse(delta("x"), {"error": {"message": "out of memory"}}, end=b""), "out of memory"),
        (sse(delta("x"), {"error": {"message": "engine died"}}), "engine died"),
        (b"data: {broken\n\n", "no JSON"),
        (MESSAGES.replace(b"message_stop", b"error"), "error"),
    ],
)
def test_an_answer_that_breaks_off_is_an_error(whole, words):
    reader = ResponseReader("messages" if b"event:" in whole else "chat", streaming=True)
    through(reader, whole)
    assert words in reader.error


def test_a_document_that_is_cut_off_is_an_error():
    reader = ResponseReader("chat", streaming=False)
    through(reader, b'{"choices": [')
    assert reader.error
    assert not reader.done


def test_an_event_without_end_is_not_kept_without_end():
    reader = ResponseReader("chat", streaming=True, max_event=1000)
    reader.feed(b"data: " + b"x" * 900)
    with pytest.raises(UpstreamError):
        reader.feed(b"x" * 100)
    with pytest.raises(UpstreamError):
        ResponseReader("chat", streaming=False, max_event=10).feed(b"x" * 11)


# --- retries -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.booleans(), st.booleans(), st.sampled_from([*RETRYABLE, "bad_request", ""]))
def test_never_after_the_first_byte_and_only_what_is_worth_it(attempt, sent, idempotent, failure):
    policy = RetryPolicy(attempts=3)
    may = policy.may_retry(attempt=attempt, first_byte_sent=sent, idempotent=idempotent, failure=failure, now=0.0)
    assert may == (attempt < 3 and not sent and idempotent and failure in RETRYABLE)


@given(st.lists(st.booleans(), max_size=300), st.floats(0, 1), st.integers(0, 5))
def test_retries_are_a_bounded_share_of_requests(asks, budget, burst):
    policy, requests, retries = RetryPolicy(budget=budget, burst=burst), 0, 0
    for ask in asks:
        if ask:
            policy.asked(0.0)
            requests += 1
        elif policy.may_retry(attempt=1, first_byte_sent=False, idempotent=True, failure="reset", now=0.0):
            policy.spent(0.0, "reset")
            retries += 1
        assert retries <= burst + budget * requests + 1e-6
        assert 0 - 1e-9 <= policy.left <= burst


def test_a_retry_after_a_connection_that_was_refused_costs_nothing_of_the_budget():
    policy = RetryPolicy(budget=0.0, burst=0.0)
    assert not policy.may_retry(attempt=1, first_byte_sent=False, idempotent=True, failure="reset", now=0.0)
    for _ in range(100):
        assert policy.may_retry(attempt=1, first_byte_sent=False, idempotent=True, failure="connect", now=0.0)
        policy.spent(0.0, "connect")
    assert policy.left == 0.0
    assert not policy.may_retry(attempt=3, first_byte_sent=False, idempotent=True, failure="connect", now=0.0)


def test_settings_that_are_none():
    for make in (lambda: RetryPolicy(0), lambda: RetryPolicy(budget=-1.0), lambda: RetryPolicy(burst=float("nan"))):
        with pytest.raises(InvalidInputError):
            make()
    assert RetryPolicy(budget=None).left == float("inf")
