import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.masking.attention_guided import high_attention_mask, low_attention_mask, show_hints
from tests.masking.reference import hide_highest
from tests.masking.strategies import MaskInputs, mask_inputs, masked_sets


def draw_attention(noise: Tensor, seed: int) -> Tensor:
    return torch.rand(noise.shape, generator=torch.Generator().manual_seed(seed)).softmax(dim=1)


@given(mask_inputs(distinct_noise=True), st.integers(0, 2**32))
def test_the_most_attended_patches_are_hidden(inputs: MaskInputs, seed: int) -> None:
    attention = draw_attention(inputs.noise, seed)
    for row, hidden in enumerate(masked_sets(high_attention_mask(attention, inputs.num_masked))):
        scores = attention[row].tolist()
        assert hidden == hide_highest(range(len(scores)), scores, int(inputs.num_masked[row]))


@given(mask_inputs(distinct_noise=True), st.integers(0, 2**32), st.data())
def test_hints_are_shown_among_the_most_attended_patches(inputs: MaskInputs, seed: int, data: st.DataObject) -> None:
    attention = draw_attention(inputs.noise, seed)
    masked = high_attention_mask(attention, inputs.num_masked)
    candidates = torch.tensor([data.draw(st.integers(0, int(n))) for n in inputs.num_masked])
    shown = torch.tensor([data.draw(st.integers(0, int(n))) for n in candidates])
    hints = show_hints(masked, attention, inputs.noise, num_candidates=candidates, num_shown=shown)
    assert torch.equal(hints.sum(dim=1), inputs.num_masked - shown)
    for row, hidden in enumerate(masked_sets(hints)):
        scores, noise = attention[row].tolist(), inputs.noise[row].tolist()
        top = hide_highest(range(len(scores)), scores, int(candidates[row]))
        whole = hide_highest(range(len(scores)), scores, int(inputs.num_masked[row]))
        assert hidden == whole - hide_highest(sorted(top), noise, int(shown[row]))


def test_hints_of_an_image_without_hidden_patches_change_nothing() -> None:
    attention = torch.rand(2, 9, generator=torch.Generator().manual_seed(0))
    masked = high_attention_mask(attention, torch.tensor([0, 5]))
    two = torch.tensor([2, 2])
    hints = show_hints(masked, attention, attention, num_candidates=two, num_shown=torch.tensor([3, 3]))
    assert hints.sum(dim=1).tolist() == [0, 3]


@given(mask_inputs(distinct_noise=True), st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 1.0]))
def test_only_the_least_attended_patches_are_hidden_by_chance(inputs: MaskInputs, seed: int, chance: float) -> None:
    attention = draw_attention(inputs.noise, seed)
    found = low_attention_mask(attention, inputs.noise, num_candidates=inputs.num_masked, chance=chance)
    for row, hidden in enumerate(masked_sets(found)):
        lowest = hide_highest(range(attention.shape[1]), (-attention[row]).tolist(), int(inputs.num_masked[row]))
        assert hidden == {patch for patch in lowest if float(inputs.noise[row, patch]) < chance}
