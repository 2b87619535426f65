from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c2fmae.core.errors import UserError
from c2fmae.labelling.image_names import clean_name
from c2fmae.labelling.prompts import PHRASE_ENDS, build_prompts, check_phrase_ends, score_names
from c2fmae.labelling.wordnet_names import name_wnid
from tests.labelling.tiny_models import BERT_IDS, build_letter_tokenizer


@cache
def get_tokenizer() -> Any:
    return build_letter_tokenizer()


@cache
def tokenize(text: str) -> list[int]:
    return list(get_tokenizer()(text, add_special_tokens=False).input_ids)


def check_prompts(names: Sequence[str], **options: int) -> int:
    """Check that prompts hold the names in order, with exact spans, under the limit; return their number."""
    prompts = build_prompts(tokenize, names, **options)
    assert [name for prompt in prompts for name in prompt.names] == list(names)
    for prompt in prompts:
        ids = get_tokenizer()(prompt.text).input_ids
        assert len(ids) <= 256
        assert ids[-2] == PHRASE_ENDS["."]
        for name, (start, end) in zip(prompt.names, prompt.spans, strict=True):
            assert ids[start:end] == tokenize(name)
            assert ids[end] == PHRASE_ENDS["."]
    return len(prompts)


def test_spans_are_exact_for_the_labels_of_imagenet() -> None:
    wnids = (files("timm.data") / "_info" / "imagenet_synsets.txt").read_text().split()

    assert check_prompts([clean_name(name_wnid(wnid) or "") for wnid in wnids]) > 40  # a letter is a token


@given(
    st.lists(st.text("abZ .?-'éß&,\n", min_size=1, max_size=30).map(clean_name).filter(bool), min_size=1, unique=True),
    st.integers(1, 9),
)
@settings(max_examples=30)
def test_spans_are_exact_for_any_names(names: list[str], max_names: int) -> None:
    num_prompts = check_prompts(names, max_names=max_names)
    assert num_prompts >= -(-len(names) // max_names)


def test_a_prompt_uses_all_of_the_tokens() -> None:
    words = "a" * 100  # longer words are unknown
    assert check_prompts([f"{words} {words} {'b' * 53}"]) == 1  # 256 tokens with [CLS], `.` and [SEP]
    assert check_prompts([f"{words} {'b' * 26}", f"{words} {'c' * 26}"]) == 1
    assert check_prompts([f"{words} {'b' * 26}", f"{words} {'c' * 27}"]) == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (f"{'a' * 100} {'b' * 100} {'c' * 54}", r"has 254 tokens \(expected at most 253\)"),
        ("猫", r"does not know all words of '猫'"),
        ("\u200b", r"has no tokens"),
        ("a.b", r"are not those of its names"),
    ],
)
def test_a_name_that_is_no_phrase_is_refused(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        build_prompts(lambda text: [7] if text == "a.b" else tokenize(text), ["cat", name], unknown=BERT_IDS["[UNK]"])


def test_a_peak_at_the_tokens_of_a_name_is_a_score_of_that_name_only() -> None:
    names = ["cat", "fire hydrant", "dog"]
    (prompt,) = build_prompts(tokenize, names)
    logits = torch.full((3, 256), float("-inf"))
    for row, (start, end) in enumerate(prompt.spans):
        logits[row, start : end - 1] = -4.0
        logits[row, end - 1] = 3.0

    largest, mean = score_names(logits, prompt.spans), score_names(logits, prompt.spans, "mean")

    peak, low = torch.tensor(3.0).sigmoid(), torch.tensor(-4.0).sigmoid()
    assert torch.equal(largest, torch.eye(3) * peak)
    lengths = [len(tokenize(name)) for name in names]
    expected = torch.tensor([(peak + low * (length - 1)) / length for length in lengths])
    torch.testing.assert_close(mean, torch.diag(expected))


def test_tokens_attend_to_their_own_phrase_only() -> None:
    from transformers.models.grounding_dino import modeling_grounding_dino

    make_masks: Any = modeling_grounding_dino.generate_masks_with_special_tokens_and_transfer_map

    (prompt,) = build_prompts(tokenize, ["cat", "fire hydrant"])
    ids = get_tokenizer()(prompt.text, return_tensors="pt").input_ids

    mask, _ = make_masks(ids, torch.tensor(list(PHRASE_ENDS.values())))

    phrases = torch.zeros(ids.shape[1], dtype=torch.int64)
    for number, (start, end) in enumerate(prompt.spans, start=1):
        phrases[start : end + 1] = number
    expected = phrases[:, None] == phrases
    expected[[0, -1]] = expected[:, [0, -1]] = False
    expected |= torch.eye(len(phrases), dtype=torch.bool)
    assert torch.equal(mask[0].bool(), expected)


def test_a_tokenizer_with_other_phrase_ends_is_refused() -> None:
    convert: Callable[[str], int] = get_tokenizer().convert_tokens_to_ids
    check_phrase_ends(convert, "folder")

    with pytest.raises(UserError, match=r"^folder: its tokenizer has the id 5 for '\.' \(expected 1012"):
        check_phrase_ends(lambda token: 5 if token == "." else convert(token), "folder")
