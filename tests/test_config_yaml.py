"""Does a file say what it says, once, and on which line is it wrong?"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferencesched import ConfigFileError
from inferencesched.config import dump, load
from tests.test_config import FULL
from tests.test_config_native import RICH

yaml = pytest.importorskip("yaml", reason="the extra yaml")
from inferencesched.adapters import yaml as files  # noqa: E402  only where there is YAML

GOOD = """\
# A comment.
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- &queue {type: queue-scorer}
- type: token-load-scorer
  parameters:
    queueThresholdTokens: 1e6
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
  - {pluginRef: token-load-scorer, weight: 0.5}
"""


def test_a_file_is_read_and_written(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(GOOD, encoding="utf-8")
    loaded = files.read(path)
    assert loaded.profiles["default"].scorers[1].scorer.queue_threshold_tokens == 1e6
    files.write(path, loaded)
    assert files.read(path).document == loaded.document


@pytest.mark.parametrize("raw", [FULL, RICH], ids=["llm-d's", "ours"])
@pytest.mark.parametrize("effective", [False, True])
def test_what_is_written_is_read(raw, effective):
    loaded = load(raw)
    assert files.parse(files.to_text(loaded, effective=effective)) == dump(loaded, effective=effective)
    assert files.read_text(files.to_text(loaded, effective=effective)).effective == loaded.effective


def test_an_empty_file_is_the_default():
    assert files.read_text("# nothing\n").effective == load().effective


#: What a file has, the line of the mistake, and words about it.
BROKEN = [
    ("no YAML", "a: [1, 2\nb: 3\n", 2, "YAML"),
    ("a tabulator", "a:\n\tb: 1\n", 2, "YAML"),
    ("two documents", "a: 1\n---\nb: 2\n", 2, "YAML"),
    ("a key twice", GOOD.replace("kind:", "kind: x\nkind:"), 4, "stands on line 3"),
    ("a key twice further down", GOOD.replace("    queueT", "    queueThresholdTokens: 4\n    queueT"), 9, "line 8"),
    ("an unknown type", GOOD.replace("type: token-load", "type: tokn-load"), 6, "did you mean 'token-load-scorer'?"),
    ("an unknown parameter", GOOD.replace("queueT", "queuT"), 8, "did you mean 'queueThresholdTokens'?"),
    ("a wrong value", GOOD.replace("1e6", "many"), 8, "a number"),
    ("a reference to nobody", GOOD.replace("pluginRef: queue", "pluginRef: que"), 12, "queue-scorer"),
    ("a missing key", GOOD.replace("- name: default\n  plugins", "- plugins"), 10, "got nothing"),
    ("a tag of somebody's", GOOD.replace("kind: ", "kind: !python/name:os.system "), 3, "python"),
    ("binary", GOOD.replace("1e6", "!!binary aGk="), 8, "binary"),
    ("a list as a key", "? [a, b]\n: 1\n", 1, "key"),
    ("an alias of itself", "plugins: &a [*a]\n", 1, "alias"),
    ("a merge of text", "<<: text\n", 1, "a mapping"),
    ("a number in no form", "a: !!int many\n", 1, "int"),
]


@pytest.mark.parametrize(("text", "line", "words"), [pytest.param(*rest, id=name) for name, *rest in BROKEN])
def test_errors_name_file_and_line(text, line, words):
    with pytest.raises(ConfigFileError) as caught:
        files.read_text(text, source="gateway.yaml")
    assert (caught.value.path, caught.value.line) == ("gateway.yaml", line)
    assert str(caught.value).startswith(f"gateway.yaml:{line}: $") and words in str(caught.value)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigFileError, match="UTF-8"):
        files.read(path)


def test_aliases_do_not_unfold_for_ever():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for i in range(1, 9):
        bomb += f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n"
    with pytest.raises(ConfigFileError, match="fewer"):
        files.parse(bomb)


def test_anchors_and_merges():
    text = "base: &b {a: 1, c: 2}\nmine:\n  <<: *b\n  a: 3\nboth: {<<: [{a: 5}, *b]}\n"
    assert files.parse(text) == {
        "base": {"a": 1, "c": 2},
        "mine": {"a": 3, "c": 2},
        "both": {"a": 5, "c": 2},
    }


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1e3", 1000.0),
        ("-.inf", float("-inf")),
        ("True", True),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("1_000", "1_000"),
    ],
)
def test_words(word, value):
    assert files.parse(f"a: {word}") == {"a": value}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcon1.-_ :", max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(VALUES)
def test_what_is_put_in_quotes_is_enough(value):
    text = yaml.dump(value, Dumper=files._CarefulDumper, allow_unicode=True)
    assert files.parse(text) == value
