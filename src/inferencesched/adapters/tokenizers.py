"""Which tokens will a model server see? The model's own tokenizer, by Hugging Face's `tokenizers`; the extra ``tokenizers``.

A chat is laid out by a template before it is tokenized. `ChatTemplate` is the common shape of those: something before and after each
role, something at the end. It is exact for models whose template has that shape (ChatML, Llama 3, Gemma); a tokenizer's own Jinja
template is not run here, since it is a program that comes with the model.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
from tokenizers import Tokenizer as HuggingFace

from inferencesched._typing import TokenArray
from inferencesched.routing.body import RequestBody


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """What stands round each turn of a chat? ``{role}`` is the role, by its name in `roles` where it has another one."""

    before: str = "<|im_start|>{role}\n"
    after: str = "<|im_end|>\n"
    begin: str = ""
    end: str = "<|im_start|>assistant\n"
    roles: tuple[tuple[str, str], ...] = ()

    def laid_out(self, body: RequestBody) -> str:
        """Return a chat's text as the model reads it."""
        names = dict(self.roles)
        turns = (
            f"{self.before.format(role=names.get(block.role, block.role))}{block.text}{self.after}"
            for block in body.blocks
        )
        return f"{self.begin}{''.join(turns)}{self.end}"


CHATML: Final = ChatTemplate()
LLAMA3: Final = ChatTemplate(
    "<|start_header_id|>{role}<|end_header_id|>\n\n",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)
GEMMA: Final = ChatTemplate(
    "<start_of_turn>{role}\n",
    "<end_of_turn>\n",
    "<bos>",
    "<start_of_turn>model\n",
    (("assistant", "model"), ("system", "user")),
)


@final
class HuggingFaceTokenizer:
    """Which tokens are a prompt?

    Parameters
    ----------
    file: a model's ``tokenizer.json``.
    template: how a chat is laid out.

    Token ids that the client gave are taken as they are; a prompt that is no chat is tokenized as it is. Cost: 1 ms for 4 KB.
    Errors: what `tokenizers` raises for a file that is none.
    """

    __slots__ = ("_tokenizer", "template")

    def __init__(self, file: str | Path, template: ChatTemplate = CHATML) -> None:
        self._tokenizer = HuggingFace.from_file(str(file))
        self.template = template

    def encode(self, body: RequestBody) -> TokenArray:
        """Return the prompt's token ids, ``uint32[T]``."""
        if body.tokens is not None:
            return body.tokens
        chat = body.kind in ("chat", "messages", "responses")
        text = self.template.laid_out(body) if chat else "".join(block.text for block in body.blocks)
        ids = self._tokenizer.encode(text, add_special_tokens=not chat).ids
        return np.array(ids, dtype=np.uint32)
