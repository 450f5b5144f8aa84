"""What the fuzzers of texts have in common: texts out of texts, a run that counts, and a command line."""

import argparse
import copy
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable

#: What means much in JSON, and in a page of metrics.
PIECES = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b'\\"',
        b"\n",
        b"\r\n",
        b"#",
        b" ",
        b"=",
    ),
    *(b"null", b"true", b"1e999", b"-0", b"NaN", b"+Inf", b"\x00", b"\xff", b"\xef\xbb\xbf", "é\u2028".encode()),
    *(b'"model"', b'"model":"x",', b'"mod\\u0065l":"y",', b'"messages":[', b'{"role":', b"le=", b'{a="b"}', b"_total"),
)
VALUES = (None, True, -1, 0, 2**63, 1e308, "", "x" * 300, "\ud800", [], {}, [[]], [None], {"model": "z"}, "model", 0.5)


class Mutator:
    """Texts out of texts: by bytes, and by what the JSON means."""

    def __init__(self, rng: random.Random, seeds: list[bytes]) -> None:
        self.rng, self.seeds = rng, seeds

    def text(self) -> bytes:
        """Return the next text; one in eight is as it was."""
        rng, seed = self.rng, self.rng.choice(self.seeds)
        way = rng.randrange(8)
        if way == 0:
            return seed
        if way < 5:
            return self.bytewise(bytearray(seed))
        try:
            document = json.loads(seed)
        except ValueError:
            return self.bytewise(bytearray(seed))
        for _ in range(rng.choice((1, 1, 2, 5))):
            self.change(document)
        text = json.dumps(document, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 1)))
        raw = text.encode("utf-8", "surrogatepass")
        return self.bytewise(bytearray(raw)) if way == 5 else raw

    def bytewise(self, raw: bytearray) -> bytes:
        rng = self.rng
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            at, way = rng.randrange(len(raw) + 1), rng.randrange(7)
            if way < 2:
                raw[at:at] = rng.choice(PIECES)
            elif way == 2:
                raw[at : at + rng.choice((1, 1, 4, 40))] = rng.choice(PIECES)
            elif way == 3:
                del raw[at : at + rng.choice((1, 1, 2, 8, 64, 4000))]
            elif way == 4 and at < len(raw):
                raw[at] ^= 1 << rng.randrange(8)
            elif way == 5:
                other = rng.choice(self.seeds)
                begin = rng.randrange(len(other))
                raw[at : at + rng.randrange(16)] = other[begin : begin + rng.randrange(200)]
            else:
                raw[at:at] = rng.choice((b"[", b'{"a":', b"\\")) * rng.choice((1, 8, 3000))
        return bytes(raw)

    def change(self, document: object) -> None:
        """Change one thing somewhere in a document, in place."""
        rng, here = self.rng, document
        while True:
            inner = list(here.values()) if isinstance(here, dict) else here if isinstance(here, list) else []
            deeper = [each for each in inner if isinstance(each, (dict, list)) and each]
            if not deeper or rng.random() < 0.3:
                break
            here = rng.choice(deeper)
        value = copy.deepcopy(rng.choice(VALUES))
        if isinstance(here, dict) and here:
            key = rng.choice(list(here))
            way = rng.randrange(4)
            if way == 0:
                del here[key]
            elif way == 1:
                here[rng.choice(("model", "weight", "x", key + "x"))] = value
            else:
                here[key] = value
        elif isinstance(here, list):
            if here and rng.random() < 0.5:
                here[rng.randrange(len(here))] = value
            else:
                here.append(copy.deepcopy(rng.choice(here)) if here and rng.random() < 0.5 else value)


class Run:
    """Texts, one by one, through `look`, which returns a word for what came of it; whatever it raises is a finding."""

    def __init__(self, seeds: list[bytes], look: Callable[[bytes, random.Random], str], seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.mutator = Mutator(self.rng, seeds)
        self.look = look
        self.text = b""
        self.executions = 0

    def go(self, *, seconds: float | None = None, executions: int | None = None) -> Counter[str]:
        """Look at so many texts, or for so long; return what came of them."""
        outcomes: Counter[str] = Counter()
        end = None if seconds is None else time.monotonic() + seconds
        while (executions is None or self.executions < executions) and (end is None or time.monotonic() < end):
            self.text = self.mutator.text()
            outcomes[self.look(self.text, self.rng)] += 1
            self.executions += 1
        return outcomes


def main(description: str, seeds: list[bytes], look: Callable[[bytes, random.Random], str]) -> int:
    """Run from the command line; 1 where there is a finding."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run = Run(seeds, look, options.seed)
    began = time.monotonic()
    try:
        outcomes = run.go(seconds=options.seconds)
    except Exception:
        sys.stderr.write(f"a finding after {run.executions} executions, seed {options.seed}: {run.text.hex()}\n")
        raise
    took = time.monotonic() - began
    sys.stdout.write(f"{run.executions} executions in {took:.0f} s, seed {options.seed}: no finding\n")
    for name, count in sorted(outcomes.items()):
        sys.stdout.write(f"  {name}: {count}\n")
    return 0
