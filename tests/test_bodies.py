"""What is read of a body, what is not touched, and what is refused."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from inferencesched.errors import BodyError
from inferencesched.routing.body import body_kind, parse_body
from inferencesched.routing.estimates import FrameTokens, VideoMetadata, VideoTokens
from inferencesched.routing.tokens import ByteTokenizer, pack_bytes

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TURNS = st.lists(
    st.builds(
        lambda role, text: {"role": role, "content": text}, st.sampled_from(["system", "user", "assistant"]), st.text()
    ),
    min_size=1,
    max_size=5,
)


def chat(messages, **more):
    return json.dumps({"model": "m", "messages": messages, **more}).encode()


def read(document, kind="chat", **more):
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_body(raw, kind, **more)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions/", "completions"),
        ("/openai/v1/responses?x=1", "responses"),
        ("/v1/embeddings", "embeddings"),
        ("/v1/messages", "messages"),
        ("/inference/v1/generate", "vllm_generate"),
        ("/generate", "sglang_generate"),
        ("/v1/images", None),
        ("", None),
    ],
)
def test_the_path_says_the_api(path, kind):
    assert body_kind(path) == kind


FIELDS = [
    ("chat", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "n": 2}, (5, 2), "Hi"),
    ("chat", {"messages": [{"content": "Hi"}], "max_completion_tokens": 7, "max_tokens": 5}, (7, 1), "Hi"),
    ("completions", {"prompt": "Once", "max_tokens": 3}, (3, 1), "Once"),
    ("completions", {"prompt": ["a", "b"]}, (None, 1), "a"),
    ("responses", {"input": "Hi", "max_output_tokens": 4}, (4, 1), "Hi"),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]}, (None, 1), "x"),
    ("embeddings", {"input": "Hi"}, (None, 1), "Hi"),
    ("messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}, (9, 1), "x"),
    ("sglang_generate", {"text": "x", "sampling_params": {"max_new_tokens": 8}}, (8, 1), "x"),
]


@pytest.mark.parametrize(("kind", "document", "caps", "text"), FIELDS)
def test_each_api_says_the_same_things_in_its_own_words(kind, document, caps, text):
    body = read({"model": "m", "stream": True, "cache_salt": "s", **document}, kind)
    assert (body.model, body.stream, body.cache_salt) == ("m", True, "s")
    assert (body.max_output_tokens, body.choices) == caps
    assert body.texts()[0] == text
    assert body.blocks[0].text == text


@pytest.mark.parametrize(
    ("kind", "document", "ids"),
    [
        ("completions", {"prompt": [1, 2, 3]}, [1, 2, 3]),
        ("completions", {"prompt": [[1, 2], [3]]}, [1, 2]),
        ("embeddings", {"input": [4, 5]}, [4, 5]),
        ("vllm_generate", {"token_ids": [7, 8, 9]}, [7, 8, 9]),
        ("sglang_generate", {"input_ids": [6]}, [6]),
    ],
)
def test_token_ids_are_taken_as_they_are(kind, document, ids):
    body = read(document, kind)
    assert body.tokens.dtype == np.uint32
    assert body.tokens.tolist() == ids == ByteTokenizer().encode(body).tolist()


def test_roles_and_boundaries_are_kept():
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Look: "}, {"type": "image_url", "image_url": {"url": "u"}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "42"},
    ]
    body = read(chat(messages, tools=[{"type": "function"}]))
    assert [block.role for block in body.blocks] == ["tools", "system", "user", "assistant", "tool"]
    assert body.blocks[2].text == "Look: "
    assert [item.modality for item in body.blocks[2].media] == ["image"]
    assert body.texts() == ("Be brief.", "Look: ", "42")
    anthropic = read({"system": "Be brief.", "messages": [{"role": "user", "content": "x"}]}, "messages")
    assert [(block.role, block.text) for block in anthropic.blocks] == [("system", "Be brief."), ("user", "x")]


def test_a_picture_is_the_same_whatever_detail_is_asked_for_and_its_hash_is_in_the_prompt():
    def with_picture(picture):
        return read(chat([{"role": "user", "content": [{"type": "image_url", "image_url": picture}]}]))

    plain, detailed, other = (with_picture(each) for each in ("u", {"url": "u", "detail": "high"}, "v"))
    assert plain.media == detailed.media
    assert plain.prompt() == detailed.prompt() != other.prompt()
    assert plain.media[0].hash != other.media[0].hash
    assert len(ByteTokenizer(media_tokens=100).encode(plain)) > 100
    assert ByteTokenizer().encode(plain).tolist() != ByteTokenizer().encode(other).tolist()


@given(TURNS, TURNS)
def test_another_turn_only_adds_bytes(first, more):
    before, after = read(chat(first)), read(chat([*first, *more]))
    assert after.prompt().startswith(before.prompt())
    whole = len(before.prompt()) // 4
    assert after.prompt()[: 4 * whole] == before.prompt()[: 4 * whole]
    ids = ByteTokenizer().encode(before)[:whole]
    assert ByteTokenizer().encode(after)[:whole].tolist() == ids.tolist()


@given(TURNS, st.booleans(), st.booleans())
def test_how_a_text_is_escaped_does_not_matter(messages, ascii_only, blanks):
    raw = json.dumps({"messages": messages}, ensure_ascii=ascii_only, indent=2 if blanks else None)
    try:
        encoded = raw.encode()
    except UnicodeEncodeError:
        return
    body, plain = read(encoded), read(chat(messages))
    assert body.prompt() == plain.prompt()
    assert body.opening() == plain.opening()
    assert body.texts() == tuple(message["content"] for message in messages)


@given(TURNS)
def test_the_plain_way_is_the_general_way(messages):
    """With tools no turn is plain; the prompt is the same behind them."""
    plain, general = read(chat(messages)), read(chat(messages, tools=[]))
    assert general.prompt().endswith(plain.prompt())
    assert plain.blocks == general.blocks[1:]
    pieces = b"".join(piece for piece in plain.prompt_pieces() if isinstance(piece, bytes))
    assert plain.prompt() == pieces
    assert plain.opening() == plain.prompt()[: len(plain.opening())]


@given(TURNS, st.integers(0, 3))
def test_a_conversation_opens_alike_in_all_its_turns(messages, extra):
    known = [*messages, {"role": "user", "content": "And?"}]
    later = [*known, *({"role": "assistant", "content": "x"} for _ in range(extra))]
    assert read(chat(known)).opening() == read(chat(later)).opening()


# --- what is not touched -----------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.text(max_size=8), JSON, max_size=6),
    st.text(min_size=1, max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_a_model_is_spliced_in_and_nothing_else_changes(more, name, known, blanks):
    document = {**more, "prompt": "x"} if not known else {**more, "prompt": "x", "model": "old"}
    for field in ("stream", "cache_salt", "max_tokens", "n", "stream_options", "suffix"):
        document.pop(field, None)
    if not known:
        document.pop("model", None)
    raw = json.dumps(document, indent=1 if blanks else None).encode()
    spliced = read(raw, "completions").with_model(name)
    after = json.loads(spliced)
    assert after.pop("model") == name
    document.pop("model", None)
    assert after == document
    cut = raw.find(b'"old"')
    if known and raw.count(b'"old"') == 1:
        assert spliced[:cut] == raw[:cut]
        assert spliced.endswith(raw[cut + 5 :])


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b'{"model": "a", "prompt": "x", "model": "b"}', b'{"model": "n", "prompt": "x", "model": "n"}'),
        (b'{"mod\\u0065l" : "a", "prompt": "x"}', b'{"mod\\u0065l" : "n", "prompt": "x"}'),
        (b'{"prompt": "x", "x": {"model": "a"}}', b'{"model": "n", "prompt": "x", "x": {"model": "a"}}'),
        (b'{"prompt": "\\"model\\": \\"a\\"", "model":"a"}', b'{"prompt": "\\"model\\": \\"a\\"", "model":"n"}'),
        (b'{"model": null, "prompt": "x", "n": 1}', b'{"model": "n", "prompt": "x", "n": 1}'),
        (b'{"prompt": "model", "model": "a\\"b"}', b'{"prompt": "model", "model": "n"}'),
        (b' {"prompt": "x", "f": 1.50e+2, "model"\n:\t"a"} ', b' {"prompt": "x", "f": 1.50e+2, "model"\n:\t"n"} '),
    ],
)
def test_the_model_that_a_server_would_read_is_the_one_that_is_replaced(raw, wanted):
    assert read(raw, "completions").with_model("n") == wanted


def test_of_two_keys_the_last_counts():
    assert read(b'{"model": "a", "prompt": "x", "model": "b"}', "completions").model == "b"


@given(TURNS, st.data())
def test_texts_are_replaced_one_for_one(messages, data):
    body = read(chat(messages, temperature=0.10))
    texts = body.texts()
    other = tuple(data.draw(st.text()) for _ in texts)
    changed = body.with_texts(other)
    assert read(changed).texts() == other
    assert json.loads(read(changed).with_texts(texts)) == json.loads(body.raw)
    assert body.with_texts(texts) == body.raw
    with pytest.raises(BodyError, match="texts"):
        body.with_texts((*other, "one too many"))


# --- what is refused ---------------------------------------------------------------------------------------------

BAD = {
    "cut off": b'{"model": "m", "messages": [{"role": "user", "content": "Hi"',
    "no object": b"[]",
    "empty": b"",
    "nested 10,000 deep": b'{"messages": [{"role": "user", "content": ' + b"[" * 10_000 + b"]" * 10_000 + b"}]}",
    "objects 10,000 deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "no UTF-8": b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}',
    "model is a number": chat([{"role": "user", "content": "x"}]).replace(b'"m"', b"7"),
    "messages is an object": b'{"messages": {}}',
    "no messages": b'{"model": "m"}',
    "messages empty": b'{"model": "m", "messages": []}',
    "content is a number": b'{"messages": [{"role": "user", "content": 7}]}',
    "max_tokens below 0": chat([{"role": "user", "content": "x"}], max_tokens=-1),
    "n is 0": chat([{"role": "user", "content": "x"}], n=0),
    "stream is a word": chat([{"role": "user", "content": "x"}], stream="yes"),
    "trailing": b'{"messages": [{"content": "x"}]} x',
}


@pytest.mark.parametrize("what", BAD)
def test_every_bad_body_is_one_error(what):
    with pytest.raises(BodyError) as refused:
        read(BAD[what]).prompt()
    assert refused.value.status == 400
    assert refused.value.code == "BadRequest"


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        ("completions", {}),
        ("completions", {"prompt": None}),
        ("completions", {"prompt": []}),
        ("completions", {"prompt": 7}),
        ("completions", {"prompt": [1, -1]}),
        ("completions", {"prompt": [2**32]}),
        ("completions", {"prompt": [1, "a"]}),
        ("responses", {}),
        ("embeddings", {"input": {}}),
        ("vllm_generate", {}),
        ("vllm_generate", {"token_ids": "x"}),
        ("sglang_generate", {"sampling_params": 7}),
    ],
)
def test_no_prompt_is_a_bad_body(kind, document):
    with pytest.raises(BodyError):
        read(document, kind).prompt()


def test_a_body_that_is_too_large_is_413_and_is_not_read():
    with pytest.raises(BodyError) as refused:
        read(b" " * 100, max_bytes=99)
    assert refused.value.status == 413
    with pytest.raises(BodyError):
        read(b" " * (64 << 20))


# --- tokens ------------------------------------------------------------------------------------------------------


@given(st.binary(), st.integers(1, 9))
def test_packed_bytes_begin_alike_where_the_text_does(text, size):
    ids = pack_bytes(text, size)
    assert len(ids) == -(-len(text) // size)
    longer = pack_bytes(text + b"more", size)
    whole = len(text) // size
    assert longer[:whole].tolist() == ids[:whole].tolist()
    if size == 4:
        assert ids.astype("<u4").tobytes()[: len(text)] == text


@given(st.integers(1, 4000), st.integers(1, 4000), st.floats(0.1, 1e4), st.integers(1, 8))
def test_a_longer_video_and_a_larger_picture_are_never_fewer_tokens(width, height, seconds, patch):
    video = VideoTokens(temporal_patch=patch)
    here = video.tokens(VideoMetadata(width, height, seconds))
    assert video.tokens(VideoMetadata(width, height, seconds * 2)) >= here
    assert video.tokens(VideoMetadata(width * 2, height, seconds)) >= here
    assert VideoTokens(most_tokens=50).tokens(VideoMetadata(width, height, seconds)) <= 50
    assert FrameTokens().tokens(width * 2, height) >= FrameTokens().tokens(width, height)
