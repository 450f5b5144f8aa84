"""A slow, obvious twin of the response reader: it has the whole answer before it begins."""

import json


def events(whole):
    """Return the data of each event of a whole stream."""
    found = []
    for block in whole.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
        if lines:
            found.append(b"\n".join(lines))
    return found


def chat(whole):
    """Return text, pieces, usage and whether a chat's stream ended as it should."""
    text, pieces, usage, done = "", 0, None, False
    for data in events(whole):
        if data == b"[DONE]":
            done = True
            continue
        event = json.loads(data)
        for choice in event.get("choices", ()):
            said = (choice.get("delta") or {}).get("content") or ""
            text += said
            pieces += bool(said)
        usage = event.get("usage") or usage
    return text, pieces, usage, done
