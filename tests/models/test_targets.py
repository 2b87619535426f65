import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.models import TARGETS, PredictionTarget, patchify
from c2fmae.models.targets import DEFAULT_TARGETS
from tests.models.tiny_models import draw_normal, seeds

pytestmark = pytest.mark.numeric

GRID = (2, 3)
EACH = pytest.mark.parametrize("name", [name for name in TARGETS if getattr(TARGETS.get(name), "has_maps", True)])


def target_of(name: str, *, channels: int = 3, patch: int = 2) -> Any:
    return TARGETS.get(name)(channels=channels, patch=patch)


def is_of_ids(name: str) -> bool:
    return "ids" in getattr(TARGETS.get(name), "kinds", ())


def maps_for(name: str, *, batch: int = 2, channels: int = 3, patch: int = 2, seed: int = 0) -> Tensor:
    """Maps of a target's kind, of 2×3 patches; a quarter of an id map is unlabelled."""
    height, width = GRID[0] * patch, GRID[1] * patch
    if not is_of_ids(name):
        return draw_normal(batch, channels, height, width, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(channels, (batch, height, width), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 0.25] = 255
    return ids.to(torch.uint8)


def perfect(name: str, target: Any, maps: Tensor) -> Tensor:
    """Perfect predictions."""
    if not is_of_ids(name):
        wanted: Tensor = target.true_values(maps)
        return wanted
    ids = patchify(maps, target.patch).long()
    return 100.0 * torch.nn.functional.one_hot(ids.clamp(max=target.channels - 1), target.channels).flatten(2)


# Every target, by name


@EACH
def test_shapes_and_types_of_a_target(name: str) -> None:
    target, maps = target_of(name), maps_for(name)
    assert isinstance(target, PredictionTarget)
    assert target.size == 3 * 2**2
    valid = target.count_valid(maps)
    error = target.error(draw_normal(2, 6, 12), maps)
    assert (valid.shape, valid.dtype) == ((2, 6), torch.int64)
    assert (error.shape, error.dtype) == ((2, 6), torch.float32)
    assert (error[valid > 0] > 0).all()
    converted = target.predictions_to_maps(draw_normal(2, 6, 12), maps)
    assert (converted.shape, converted.dtype) == (maps.shape, maps.dtype)


@EACH
@given(seeds, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 5]))
def test_perfect_predictions_have_no_error_and_convert_to_the_true_map(
    name: str, seed: int, patch: int, channels: int
) -> None:
    if patch * channels == 1 and name == "normalized_pixels":
        return  # a single value has no variance
    target = target_of(name, channels=channels, patch=patch)
    maps = maps_for(name, channels=channels, patch=patch, seed=seed)
    right = perfect(name, target, maps)
    torch.testing.assert_close(target.error(right, maps), torch.zeros(2, 6), rtol=0, atol=1e-6)
    shown = target.predictions_to_maps(right, maps)
    if is_of_ids(name):
        assert torch.equal(shown[maps != 255], maps[maps != 255])
    else:
        torch.testing.assert_close(shown, maps, rtol=1e-5, atol=1e-5)


@EACH
@given(st.integers(0, 5), seeds)
def test_the_error_of_a_patch_depends_on_that_patch_only(name: str, place: int, seed: int) -> None:
    target, maps = target_of(name), maps_for(name)
    predictions = draw_normal(2, 6, 12)
    changed = predictions.clone()
    changed[0, place] = draw_normal(12, seed=seed)
    before, after = target.error(predictions, maps), target.error(changed, maps)
    difference = (before != after).nonzero().tolist()
    assert difference in ([[0, place]], [])
    before, after = target.predictions_to_maps(predictions, maps), target.predictions_to_maps(changed, maps)
    is_different = patchify(before != after, 2).any(dim=2).nonzero().tolist()
    assert is_different in ([[0, place]], [])


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_errors_are_at_least_float32(name: str, dtype: torch.dtype) -> None:
    target, maps, predictions = target_of(name), maps_for(name), draw_normal(2, 6, 12).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = target.error(predictions.to(wide), maps)
    with torch.autocast("cpu", torch.bfloat16):
        found = target.error(predictions, maps)
    assert found.dtype == wide
    assert torch.equal(found, expected)


@EACH
def test_errors_do_not_depend_on_the_memory_layout_of_predictions(name: str) -> None:
    target, maps, predictions = target_of(name), maps_for(name), draw_normal(2, 6, 12)
    laid_out = predictions.mT.contiguous().mT
    torch.testing.assert_close(target.error(laid_out, maps), target.error(predictions, maps))
    assert torch.equal(target.predictions_to_maps(laid_out, maps), target.predictions_to_maps(predictions, maps))


@EACH
def test_errors_have_gradients(name: str) -> None:
    target, maps = target_of(name), maps_for(name)
    predictions = draw_normal(2, 6, 12).requires_grad_()
    target.error(predictions, maps).sum().backward()
    assert predictions.grad is not None
    assert predictions.grad.isfinite().all()
    assert predictions.grad[target.count_valid(maps) > 0].any()


@EACH
def test_targets_of_equal_fields_are_equal(name: str) -> None:
    assert target_of(name) == target_of(name)
    assert target_of(name) != target_of(name, patch=4)


def test_every_granularity_has_a_default_target_of_its_kind() -> None:
    for name in GRANULARITIES:
        kind = GRANULARITIES.get(name).kind
        assert kind in TARGETS.get(DEFAULT_TARGETS[kind]).kinds  # type: ignore[attr-defined]  # a class, not any callable


def test_an_unknown_target_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^no target named 'pixel'\. Did you mean 'pixels'\? Known: "):
        TARGETS.get("pixel")


# Values computed by hand: one image of two patches side by side, 2×2 pixels each

IMAGE = torch.tensor([[[[1.0, 2.0, 3.0, 3.0], [3.0, 4.0, 3.0, 3.0]]]])
GUESS = torch.tensor([[[1.0, 2.0, 3.0, 0.0], [3.0, 5.0, 1.0, 3.0]]])


def test_the_pixel_error_is_the_mean_squared_difference() -> None:
    assert target_of("pixels", channels=1).error(GUESS, IMAGE).tolist() == [[16 / 4, (4 + 4) / 4]]


def test_the_error_of_continuous_maps_is_the_mean_absolute_difference() -> None:
    assert target_of("absolute", channels=1).error(GUESS, IMAGE).tolist() == [[4 / 4, (2 + 2) / 4]]


def test_normalized_pixels_use_the_unbiased_variance() -> None:
    target = target_of("normalized_pixels", channels=1)
    deviation = math.sqrt(5 / 3 + 1e-6)  # (1.5² + 0.5² + 0.5² + 1.5²) / 3
    expected = torch.tensor([[[-1.5 / deviation, -0.5 / deviation, 0.5 / deviation, 1.5 / deviation], [0.0] * 4]])
    torch.testing.assert_close(target.true_values(IMAGE), expected)
    error = target.error(torch.zeros(1, 2, 4), IMAGE)
    torch.testing.assert_close(error, torch.tensor([[5 / 4 / (5 / 3 + 1e-6), 0.0]]))


def test_eps_limits_the_normalisation_of_constant_patches() -> None:
    """The variance here is 1e-6, as eps: (3 × 0.0005² + 0.0015²) / 3."""
    image = torch.tensor([[[[0.0, 0.0], [0.0, 0.002]]]])
    wanted = target_of("normalized_pixels", channels=1).true_values(image)
    torch.testing.assert_close(wanted, torch.tensor([[[-0.5, -0.5, -0.5, 1.5]]]) * 1e-3 / math.sqrt(2e-6))


def test_a_patch_is_normalised_over_all_channels_together() -> None:
    image = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    wanted = target_of("normalized_pixels", channels=4, patch=1).true_values(image)
    torch.testing.assert_close(wanted, torch.tensor([[[-1.5, -0.5, 0.5, 1.5]]]) / math.sqrt(5 / 3 + 1e-6))


def test_a_normalized_prediction_is_converted_with_mean_and_std_of_the_true_patch() -> None:
    shown = target_of("normalized_pixels", channels=1).predictions_to_maps(torch.ones(1, 2, 4), IMAGE)
    expected = torch.tensor([2.5 + math.sqrt(5 / 3 + 1e-6)] * 2 + [3 + 1e-3] * 2)
    torch.testing.assert_close(shown, expected.expand(1, 1, 2, 4))


def test_the_label_error_is_cross_entropy_over_labelled_cells() -> None:
    """Probabilities of three quarters for class 0 and a quarter for class 1."""
    ids = torch.tensor([[[0, 1, 255, 255], [1, 255, 255, 255]]], dtype=torch.uint8)
    predictions = torch.tensor([math.log(3), 0.0]).repeat(1, 2, 4)
    target = target_of("labels", channels=2)
    assert target.count_valid(ids).tolist() == [[3, 0]]
    expected = math.log(4 / 3) + 2 * math.log(4)
    torch.testing.assert_close(target.error(predictions, ids), torch.tensor([[expected, 0.0]]))


def test_logits_of_a_patch_are_ordered_by_cell_then_class() -> None:
    target = target_of("labels", channels=3)
    ids = torch.tensor([[[0, 2, 2, 2], [1, 0, 1, 0]]], dtype=torch.uint8)
    logits = torch.zeros(1, 2, 4, 3)
    for patch, cells in enumerate([[0, 2, 1, 0], [2, 2, 1, 0]]):
        for cell, label in enumerate(cells):
            logits[0, patch, cell, label] = 1
    assert torch.equal(target.predictions_to_maps(logits.flatten(2), ids), ids)


def test_maps_can_have_255_classes() -> None:
    target = target_of("labels", channels=255, patch=1)
    ids = torch.tensor([[[254, 255]]], dtype=torch.uint8)
    assert target.error(torch.zeros(1, 2, 255), ids).tolist() == [[pytest.approx(math.log(255)), 0.0]]


def test_wrong_confident_predictions_have_a_finite_error() -> None:
    ids = torch.zeros(1, 2, 2, dtype=torch.uint8)
    predictions = torch.tensor([-1e4, 1e4]).repeat(4).view(1, 1, 8).requires_grad_()
    error = target_of("labels", channels=2).error(predictions, ids)
    assert error.tolist() == [[4 * 2e4]]
    error.sum().backward()
    assert predictions.grad is not None
    assert predictions.grad.isfinite().all()
