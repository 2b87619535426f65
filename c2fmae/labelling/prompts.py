"""From names to the prompts of Grounding DINO, and from its scores of tokens back to names.

A prompt is "cat. dog. remote control." Its phrases end at the ids of `.`, `?`, `[CLS]` and `[SEP]`, which are constants
in transformers. Tokens of different phrases do not attend to each other, so a last name without `.` would be no phrase.
The score of a name is that of its tokens. Texts that a processor decodes are not used: they join names, or cut them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from c2fmae.core.errors import UserError

PHRASE_ENDS = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
"""Ids at which the text model of Grounding DINO ends a phrase."""

TokenSpan = tuple[int, int]
"""Positions of the first token and of the one after the last."""


@dataclass(frozen=True)
class Prompt:
    """A text with some of the names."""

    text: str
    names: tuple[str, ...]
    spans: tuple[TokenSpan, ...]
    """The tokens of each name, counted from `[CLS]`, which is at 0."""


def build_prompts(
    tokenize: Callable[[str], Sequence[int]],
    names: Sequence[str],
    *,
    max_tokens: int = 256,
    max_names: int = 80,
    unknown: int | None = None,
) -> tuple[Prompt, ...]:
    """Divide names, in their order, into prompts of at most `max_names` names and `max_tokens` tokens.

    `tokenize` returns the ids of a text without `[CLS]` and `[SEP]`, which count. `unknown` is the id of text that a
    tokenizer does not know.
    """
    groups: list[list[tuple[str, list[int]]]] = [[]]
    num_tokens = 2  # [CLS] and [SEP]
    for name in names:
        tokens = list(tokenize(name))
        _check_tokens(name, tokens, max_tokens, unknown)
        if groups[-1] and (num_tokens + len(tokens) + 1 > max_tokens or len(groups[-1]) == max_names):
            groups.append([])
            num_tokens = 2
        groups[-1].append((name, tokens))
        num_tokens += len(tokens) + 1  # and a `.`
    return tuple(_make_prompt(tokenize, group) for group in groups if group)


def score_names(
    logits: Float[Tensor, "query token"], spans: Sequence[TokenSpan], reduction: Literal["max", "mean"] = "max"
) -> Float[Tensor, "query name"]:
    """Return the score of each name: the largest, or the mean, of the probabilities of its tokens."""
    probabilities = logits.float().sigmoid()
    parts = [probabilities[:, start:end] for start, end in spans]
    return torch.stack([part.amax(dim=1) if reduction == "max" else part.mean(dim=1) for part in parts], dim=1)


def check_phrase_ends(convert: Callable[[str], int | None], where: str) -> None:
    """Raise a `UserError` if a tokenizer has other ids for the tokens that end a phrase."""
    for token, expected in PHRASE_ENDS.items():
        if (number := convert(token)) != expected:
            raise UserError(
                f"{where}: its tokenizer has the id {number} for {token!r} (expected {expected}, as in BERT), so"
                " phrases would not end there. Use the tokenizer of bert-base-uncased"
            )


def _check_tokens(name: str, tokens: Sequence[int], max_tokens: int, unknown: int | None) -> None:
    if not tokens:
        raise UserError(f"names: {name!r} has no tokens. Use another name")
    if unknown in tokens:
        raise UserError(f"names: the tokenizer does not know all words of {name[:60]!r}. Use other words")
    if len(tokens) > max_tokens - 3:
        raise UserError(
            f"names: {name[:60]!r} … has {len(tokens)} tokens (expected at most {max_tokens - 3}). Shorten it"
        )


def _make_prompt(tokenize: Callable[[str], Sequence[int]], group: Sequence[tuple[str, list[int]]]) -> Prompt:
    text, all_tokens, spans = "", list[int](), list[TokenSpan]()
    for name, tokens in group:
        start = len(all_tokens) + 1
        spans.append((start, start + len(tokens)))
        all_tokens += [*tokens, PHRASE_ENDS["."]]
        text += f"{name}. "
    if list(tokenize(text)) != all_tokens:  # a phrase end inside of a name, or a tokenizer that joins words
        raise UserError(f"names: the tokens of the prompt {text[:60]!r} … are not those of its names. Use plain words")
    return Prompt(text.strip(), tuple(name for name, _ in group), tuple(spans))
