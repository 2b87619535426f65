"""The tokens of names, for models that read each name on its own."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from c2fmae.core.errors import UserError


def tokenize_names(
    tokenizer: Any, texts: Sequence[str], *, max_tokens: int
) -> tuple[Int64[Tensor, "name token"], Int64[Tensor, "name token"]]:
    """Return the ids of names, padded to `max_tokens`, and masks that are 1 at their tokens.

    Models cannot read more tokens, and tokenizers do not cut them off: raise a `UserError` for a name that is too long.
    """
    for text, ids in zip(texts, tokenizer(list(texts)).input_ids, strict=True):
        if len(ids) > max_tokens:
            raise UserError(
                f"names: {text[:60]!r} has {len(ids)} tokens (expected at most {max_tokens}). Shorten the name"
            )
    tokens = tokenizer(list(texts), padding="max_length", max_length=max_tokens, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]
