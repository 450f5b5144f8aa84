"""What does the body of a request ask for?

`parse_body` reads what a gateway must know, and keeps the bytes: `RequestBody.with_model` and `with_texts` cut into them, and change
nothing else. Where a key stands twice, the last one counts, as for most servers; a model is replaced at every place.
"""

from inferencesched.routing.body.kinds import BodyKind, body_kind
from inferencesched.routing.body.parse import MAX_BYTES, PromptBlock, RequestBody, parse_body

__all__ = ["MAX_BYTES", "BodyKind", "PromptBlock", "RequestBody", "body_kind", "parse_body"]
