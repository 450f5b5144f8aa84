"""Guards: what passes, what does not, however it is cut; and what an audit keeps."""

import http.server
import json
import threading
from itertools import pairwise
from typing import ClassVar

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from inferencesched.adapters.guard_http import ModelArmor
from inferencesched.adapters.jsonl import JsonlAudit, read_jsonl
from inferencesched.adapters.re2 import Patterns
from inferencesched.errors import GuardBlockedError, InvalidInputError, UnknownNameError
from inferencesched.governance import (
    ALLOW,
    Block,
    Context,
    FinderGuard,
    GuardChain,
    Guarded,
    Keywords,
    PersonalData,
    Redact,
    SizeGuard,
    Span,
)
from inferencesched.governance.audit import Auditor, AuditRecord
from inferencesched.governance.finders import INVISIBLE, folded, redacted
from inferencesched.governance.personal import luhn, mod97
from inferencesched.observability.events import Ended, Labels, Received, Refused, Started
from inferencesched.request import Usage
from inferencesched.routing.body import parse_body

HERE = Context()
CARD, IBAN = "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00"


def body(*texts):
    return parse_body(json.dumps({"messages": [{"role": "user", "content": text} for text in texts]}).encode(), "chat")


# --- finders -----------------------------------------------------------------------------------------------------

FOUND = [
    ("email", "mail ada.l+x@mail.example.co.uk now", "ada.l+x@mail.example.co.uk"),
    ("card", f"card {CARD}.", CARD),
    ("iban", f"to {IBAN} please", IBAN),
    ("phone", "call +49 30 901820 today", "+49 30 901820"),
    ("ip_address", "at 192.168.0.17:80", "192.168.0.17"),
    ("secret", "key sk-abcdefghij0123456789xyz!", "sk-abcdefghij0123456789xyz"),
    ("secret", "AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
]


@pytest.mark.parametrize(("rule", "text", "said"), FOUND)
def test_personal_data_is_found(rule, text, said):
    [span] = PersonalData([rule]).find(text)
    assert (text[span.begin : span.end], span.rule) == (said, rule)
    assert said not in redacted(text, [span])


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "DE88370400440532013000",
        "999.168.0.17",
        "1.2.3.4.5.6",
        "a@b",
        "room 12, 3 apples and 1999",
        "sk-short",
    ],
)
def test_what_only_looks_like_it_is_not(text):
    assert PersonalData().find(text) == []


def test_check_digits():
    assert luhn("79927398713")
    assert not luhn("79927398710")
    assert mod97("GB82WEST12345698765432")
    assert not mod97("GB82WEST12345698765433")


@pytest.mark.parametrize(
    "text",
    [
        "the Blue Moon plan",
        "BLUE MOON",
        "\uff42\uff4c\uff55\uff45 \uff4d\uff4f\uff4f\uff4e",
        "Bl\u200bue Mo\u2060on",
        "(blue moon)",
        "Blue\u00a0Moon",
    ],
)
def test_a_keyword_is_found_however_it_is_written(text):
    finder = Keywords({"project": ("blue moon",)})
    assert [span.rule for span in finder.find(text)] == ["project"]


@pytest.mark.parametrize("text", ["bluemoon", "blue moons", "a_blue moon", "blue  moon", "blue", ""])
def test_a_keyword_is_a_whole_one(text):
    assert Keywords({"project": ("blue moon",)}).find(text) == []


@given(
    st.text(alphabet="ab \u200bÄäß_", max_size=30),
    st.lists(st.sampled_from(["a", "ab", "ba b", "ä", "ss", "b a"]), min_size=1),
)
def test_keywords_are_what_a_slow_search_finds(text, words):
    finder = Keywords({word: (word,) for word in words}, action="redact")
    seen, places = folded(text)
    assert places is None or len(places) == len(seen) + 1
    hits = []
    for word in set(words):
        known = folded(word)[0]
        for i in range(len(seen) - len(known) + 1):
            left, right = i == 0 or not (seen[i - 1].isalnum() or seen[i - 1] == "_"), i + len(known)
            first, last = known[0], known[-1]
            left = left or not (first.isalnum() or first == "_")
            after = (
                right == len(seen)
                or not (seen[right].isalnum() or seen[right] == "_")
                or not (last.isalnum() or last == "_")
            )
            if seen[i:right] == known and left and after:
                begin = i if places is None else places[i]
                end = right if places is None else places[right - 1] + 1
                hits.append((begin, end))
    expected, at = [], 0
    for begin, end in sorted(hits, key=lambda hit: (hit[0], -hit[1])):
        if begin >= at:
            expected.append((begin, end))
            at = end
    assert [(span.begin, span.end) for span in finder.find(text)] == expected


def test_no_invisible_character_has_a_width():
    assert all(len(character) == 1 for character in INVISIBLE)
    assert folded("a\u200bb") == ("ab", [0, 2, 3])


@pytest.mark.parametrize("pattern", ["(a+)+$b", "(x|x)*y", "(.*a){20}c"])
def test_no_pattern_hangs_the_gateway(pattern):
    finder = Patterns({"evil": pattern})
    assert finder.find("a" * 50_000 + "x" * 50_000) is not None


@pytest.mark.parametrize("pattern", ["(", r"(?=a)", r"(a)\1", "a*", ""])
def test_what_re2_does_not_take_is_refused(pattern):
    with pytest.raises(InvalidInputError, match="rules"):
        Patterns({"bad": pattern})


def test_a_pattern_is_found_where_it_is():
    finder = Patterns({"key": r"sk-\w{4,8}", "code": [r"\bzeta\d+", "omega"]}, action="redact")
    text = "ZETA7 and sk-abcdef, omega"
    assert [(text[span.begin : span.end], span.rule) for span in finder.find(text)] == [
        ("ZETA7", "code"),
        ("sk-abcdef", "key"),
        ("omega", "code"),
    ]
    assert finder.find(text, 5)[0].rule == "key"
    assert Patterns({"key": "a{3,}"}, longest=5, action="redact").find("aaaa")[0].end == 4


# --- streams -----------------------------------------------------------------------------------------------------

FINDERS = {
    "keywords": Keywords({"k": ("ab", "ba c", "aab")}, action="redact", spread=2),
    "blocking keywords": Keywords({"k": ("cab", "b b")}, spread=1),
    "anywhere": Keywords({"k": ("ab", "bab")}, action="redact", whole=False, spread=1),
    "patterns": Patterns({"r": ["a{2,4}b", r"\bc+\b"]}, action="redact", longest=5),
    "blocking patterns": Patterns({"r": "ab{2}c"}, longest=6),
}
WORDS = st.text(alphabet="abc \u200b_", max_size=60)


@pytest.mark.parametrize("name", FINDERS)
@given(text=WORDS, cuts=st.lists(st.integers(0, 60), max_size=8))
@settings(max_examples=150)
def test_however_an_answer_is_cut_it_passes_as_a_whole_would(name, text, cuts):
    chain = GuardChain((FinderGuard("g", FINDERS[name]),))
    verdict = chain.check_response([text], now=0.0)
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    stream, out = chain.stream(now=0.0), []
    blocked = False
    try:
        for begin, end in pairwise(places):
            out.append(stream.feed(text[begin:end], now=0.0))
        out.append(stream.finish(now=0.0))
    except GuardBlockedError:
        blocked = True
    assert blocked == isinstance(verdict, Block)
    if blocked:
        first = FINDERS[name].find(text)[0]
        assert len("".join(out)) <= first.begin
    else:
        assert "".join(out) == (verdict.texts[0] if isinstance(verdict, Redact) else text)


@given(
    pieces=st.lists(
        st.sampled_from([CARD, "me@example.com", "+49 30 901820", IBAN, "10.1.2.3", "hi ", "7", "-", " "]), max_size=7
    ),
    size=st.integers(1, 40),
)
@settings(max_examples=100)
def test_personal_data_that_is_split_over_chunks_is_found_all_the_same(pieces, size):
    text = " ".join(pieces)
    chain = GuardChain((FinderGuard("p", PersonalData()),))
    verdict = chain.check_response([text], now=0.0)
    stream = chain.stream(now=0.0)
    out = [stream.feed(text[i : i + size], now=0.0) for i in range(0, len(text), size)]
    assert "".join((*out, stream.finish(now=0.0))) == (verdict.texts[0] if isinstance(verdict, Redact) else text)


def test_what_is_held_back_is_bounded():
    chain = GuardChain((FinderGuard("k", FINDERS["keywords"]), FinderGuard("r", FINDERS["patterns"])))
    stream = chain.stream(now=0.0)
    sent = back = 0
    for _ in range(500):
        back += len(stream.feed("x y z ", now=0.0))
        sent += 6
        assert sent - back <= FINDERS["keywords"].longest + FINDERS["patterns"].longest
    assert back + len(stream.finish(now=0.0)) == sent


def test_a_guard_that_needs_all_of_it_is_asked_at_the_end():
    chain = GuardChain((SizeGuard(characters=10),))
    stream = chain.stream(now=0.0)
    assert stream.feed("12345678", now=0.0) == "12345678"
    stream.feed("9012", now=0.0)
    with pytest.raises(GuardBlockedError, match="characters"):
        stream.finish(now=0.0)


# --- chains ------------------------------------------------------------------------------------------------------


class Says:
    def __init__(self, verdict=ALLOW, name="says", error=None):
        self.name, self.verdict, self.error, self.saw = name, verdict, error, []

    def check(self, texts, context):
        self.saw.append((tuple(texts), context.phase, context.tenant))
        if self.error is not None:
            raise self.error
        return self.verdict


def test_each_guard_is_asked_once_in_order_and_sees_what_was_left():
    first = FinderGuard("p", PersonalData())
    second, third = Says(Redact(("x",), ("rule",))), Says()
    chain = GuardChain((first, second, third))
    assert chain.check_request(body("I am me@example.com"), tenant="t", now=1.0) == Redact(("x",), ("email", "rule"))
    assert second.saw == [(("I am [email]",), "request", "t")]
    assert third.saw == [(("x",), "request", "t")]
    blocking, never = Says(Block("b", "r")), Says()
    assert GuardChain((blocking, never)).check_request(body("a"), now=1.0) == Block("b", "r")
    assert not never.saw


def test_a_guard_is_asked_in_its_phases():
    only = Says()
    chain = GuardChain((Guarded(only, phases=("response",)),))
    assert chain.check_request(body("a"), now=1.0) == ALLOW
    assert chain.check_response(["b"], now=1.0) == ALLOW
    assert only.saw == [(("b",), "response", "")]


@pytest.mark.parametrize("policy", ["open", "closed"])
@pytest.mark.parametrize("broken", [Says(error=RuntimeError("boom")), Says(Redact((), ("r",)))])
def test_a_guard_that_fails_has_a_policy_and_is_told(policy, broken):
    told = []
    chain = GuardChain((Guarded(broken, on_error=policy),), on_failure=lambda guard, error: told.append((guard, error)))
    verdict = chain.check_request(body("a"), now=1.0)
    assert verdict == (ALLOW if policy == "open" else Block("says", "failed"))
    assert told[0][0] is broken


@pytest.mark.parametrize(("took", "verdict"), [(0.5, ALLOW), (2.0, Block("says", "failed"))])
def test_a_guard_has_its_time(took, verdict):
    times = iter([10.0, 10.0 + took])
    chain = GuardChain((Guarded(Says(), budget=1.0),), clock=lambda: next(times))
    assert chain.check_request(body("a"), now=1.0) == verdict


def test_sizes():
    assert SizeGuard(characters=3).check(["ab", "cd"], HERE).rule == "characters"
    assert SizeGuard(texts=1).check(["ab", "cd"], HERE).rule == "texts"
    assert SizeGuard(line=3).check(["ab\nabcd"], HERE).rule == "line"
    assert SizeGuard(controls=False).check(["a\x00"], HERE).rule == "controls"
    assert SizeGuard(controls=False, line=4).check(["a\tb\n"], HERE) == ALLOW


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Guarded(Says(), on_error="maybe"), UnknownNameError),
        (lambda: Guarded(Says(), phases=()), UnknownNameError),
        (lambda: Guarded(Says(), budget=0.0), InvalidInputError),
        (lambda: GuardChain((Guarded(Says(), budget=1.0),)), InvalidInputError),
        (lambda: SizeGuard(characters=0), InvalidInputError),
        (lambda: Keywords({"a": ("",)}), InvalidInputError),
        (lambda: Keywords({}), InvalidInputError),
        (lambda: PersonalData(["shoe size"]), UnknownNameError),
        (lambda: Keywords({"a": ("b",)}, action="hide"), UnknownNameError),
        (lambda: Patterns({}), InvalidInputError),
        (lambda: Patterns({"a": "b"}, longest=0), InvalidInputError),
        (lambda: Auditor([], texts="all"), UnknownNameError),
        (lambda: Auditor([], texts="hash", secret=b"short"), InvalidInputError),
        (lambda: Auditor([], texts="redacted"), InvalidInputError),
        (lambda: Auditor([], most=0), InvalidInputError),
    ],
)
def test_settings_that_are_none(make, error):
    with pytest.raises(error):
        make()


# --- audit -------------------------------------------------------------------------------------------------------

LABELS = Labels("llama", "llama-8b", "acme", 1, "pool", "acme")


class Kept(list):
    write = list.append


def story(auditor, name="r", text="my card is 4111 1111 1111 1111"):
    auditor.emit(Received(name, LABELS, 100, 1.0))
    auditor.prompt(name, [text], ["card"])
    auditor.emit(Started(name, LABELS, "ep-0", 1, 1.5))
    auditor.answer(name, ["fine"])
    auditor.emit(Ended(name, LABELS, "ep-0", "completed", "", True, Usage(10, 3, 4), 1.0, 0.5, 99, 2.0))


def test_a_record_says_who_what_and_how_it_ended():
    kept = Kept()
    auditor = Auditor(kept)
    story(auditor)
    [record] = kept
    assert (record.tenant, record.model, record.target, record.endpoint) == ("acme", "llama", "llama-8b", "ep-0")
    assert (record.outcome, record.input_tokens, record.output_tokens, record.cached_tokens) == ("completed", 10, 3, 4)
    assert (record.received_at, record.ended_at, record.guards) == (1.0, 2.0, ("card",))
    assert (record.prompt, record.answer, len(auditor)) == ("", "", 0)
    auditor.emit(Refused("s", LABELS, "rate_limited", 429, "ResourceExhausted", 3.0))
    assert (kept[1].status, kept[1].outcome) == (429, "rate_limited")


def test_hashes_tell_equal_texts_and_nothing_else():
    kept = Kept()
    for name, text, secret in (
        ("a", "x", b"0" * 16),
        ("b", "x", b"0" * 16),
        ("c", "y", b"0" * 16),
        ("d", "x", b"1" * 16),
    ):
        story(Auditor(kept, texts="hash", secret=secret), name, text)
    prompts = [record.prompt for record in kept]
    assert prompts[0] == prompts[1]
    assert len({prompts[0], prompts[2], prompts[3]}) == 3
    assert all(len(prompt) == 64 for prompt in prompts)


def test_secrets_are_absent_from_what_is_written(tmp_path):
    path = tmp_path / "audit.jsonl"
    guards = (FinderGuard("p", PersonalData()), FinderGuard("k", Keywords({"w": ("blue moon",)})))
    with JsonlAudit(path, sync=True) as sink:
        auditor = Auditor(sink, texts="redacted", guards=guards)
        story(auditor, "r-1")
        story(auditor, "r-2", "about blue moon")
        story(Auditor(sink, texts="redacted", guards=(Says(error=RuntimeError()),)), "r-3", "anything")
    written = path.read_text(encoding="utf-8")
    assert "4111" not in written
    assert "moon" not in written
    assert "anything" not in written
    assert [record.prompt for record in read_jsonl(path)] == ["my card is [card]", "[withheld]", "[withheld]"]


@given(
    st.builds(
        AuditRecord,
        request_id=st.text(),
        received_at=st.floats(allow_nan=False, allow_infinity=False),
        ended_at=st.just(1.0),
        outcome=st.text(),
        status=st.none() | st.integers(0, 999),
        guards=st.lists(st.text()).map(tuple),
        prompt=st.text(),
    )
)
def test_records_come_back_as_they_were(record):
    assert msgspec.json.decode(msgspec.json.encode(record), type=AuditRecord) == record


def test_a_file_that_has_grown_is_put_aside(tmp_path):
    path = tmp_path / "audit.jsonl"
    with JsonlAudit(path, max_bytes=400, keep=2) as sink:
        for i in range(12):
            sink.write(AuditRecord(request_id=f"r-{i:03}", received_at=1.0, ended_at=2.0, outcome="completed" * 6))
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    kept = [record.request_id for name in reversed(names) for record in read_jsonl(tmp_path / name)]
    assert kept == [f"r-{i:03}" for i in range(12)][-len(kept) :]
    assert path.stat().st_mode & 0o077 == 0


def test_what_nobody_ends_is_written_as_lost():
    kept = Kept()
    auditor = Auditor(kept, most=2)
    for name in ("a", "b", "c"):
        auditor.emit(Received(name, LABELS, 1, 1.0))
    assert [(record.request_id, record.outcome) for record in kept] == [("a", "lost")]
    assert len(auditor) == 2


# --- a service ---------------------------------------------------------------------------------------------------


class Service(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list] = []

    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Service.asked.append((self.path, said, self.headers.get("authorization")))
        text = json.dumps(said)
        status = 500 if "break" in text else 200
        found = "MATCH_FOUND" if "attack" in text else "NO_MATCH_FOUND"
        answer = {
            "sanitizationResult": {
                "filterMatchState": found,
                "filterResults": {"pi_and_jailbreak": {"piAndJailbreakFilterResult": {"matchState": found}}},
                "invocationResult": "SUCCESS",
            }
        }
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        pass


@pytest.fixture(name="service")
def _service():
    server = http.server.HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Service.asked = []
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_service_is_asked_by_an_injected_transport(service):
    httpx = pytest.importorskip("httpx")
    with httpx.Client() as client:

        def post(url, content, headers):
            answer = client.post(url, content=content, headers=headers)
            return answer.status_code, answer.content

        guard = ModelArmor(post, f"{service}/v1/projects/p/locations/l/templates/t", token=lambda: "tok")
        chain = GuardChain((guard,))
        assert chain.check_request(body("hello"), now=1.0) == ALLOW
        assert chain.check_request(body("an attack"), now=1.0) == Block("model-armor", "pi_and_jailbreak")
        assert chain.check_response(["an attack"], now=1.0) == Block("model-armor", "pi_and_jailbreak")
        assert chain.check_request(body("break it"), now=1.0) == Block("model-armor", "failed")
    path, said, token = Service.asked[0]
    assert (path, token) == ("/v1/projects/p/locations/l/templates/t:sanitizeUserPrompt", "Bearer tok")
    assert said == {"userPromptData": {"text": "hello"}}
    assert Service.asked[2][0].endswith(":sanitizeModelResponse")
    assert Service.asked[2][1] == {"modelResponseData": {"text": "an attack"}}


def test_spans_are_words():
    assert Span(0, 1, "r").replacement is None
