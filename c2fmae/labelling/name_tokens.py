"""The tokens of names, for models that read each name on its own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from c2fmae.core.errors import UserError

_NAMES_AT_ONCE = 64


def embed_names(
    tokenizer: Any,
    texts: Sequence[str],
    embed: Callable[[Int64[Tensor, "part token"], Int64[Tensor, "part token"]], Float[Tensor, "part ..."]],
    *,
    max_tokens: int,
    device: torch.device,
) -> tuple[Float[Tensor, "name ..."], Int64[Tensor, "name token"]]:
    """Return the features that `embed` computes from the tokens of names and their masks, and the masks.

    All names are embedded at once, in their order: later calls with some of them would differ in the last bits.
    """
    ids, mask = (each.to(device) for each in tokenize_names(tokenizer, texts, max_tokens=max_tokens))
    parts = zip(ids.split(_NAMES_AT_ONCE), mask.split(_NAMES_AT_ONCE), strict=True)
    return torch.cat([embed(*part) for part in parts]), mask


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
