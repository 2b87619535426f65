from typing import Any

import pytest
import torch
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.models import MultiGranularAutoencoder, PredictionHead, sincos_positions
from tests.models.tiny_models import (
    ALL_GRANULARITIES,
    draw_input_maps,
    draw_masks_at_random,
    make_autoencoder,
    randomise_parameters,
)

pytestmark = pytest.mark.numeric

GRID, N = (2, 3), 6


def inputs_of(part: nn.Module, model: MultiGranularAutoencoder, masks: Masks, **maps: Any) -> tuple[Any, ...]:
    """The inputs with which a submodule is called."""
    seen: list[tuple[Any, ...]] = []
    handle = part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    model(draw_input_maps(**maps), masks)
    handle.remove()
    [inputs] = seen
    return inputs


@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (1, 4)])
def test_every_token_has_the_position_of_its_patch_whatever_its_granularity(grid: tuple[int, int]) -> None:
    num_patches = grid[0] * grid[1]
    model, masks = make_autoencoder(), draw_masks_at_random(num_patches=num_patches, num_visible=2 * num_patches)
    where, bare = sincos_positions(grid, 64, trained_grid=GRID), model.embeddings(draw_input_maps(grid=grid), masks)
    [tokens] = inputs_of(model.encoder, model, masks, grid=grid)
    for image in range(2):
        for slot, place in enumerate(masks.visible_idx[image].tolist()):
            expected = bare[image, slot] + where[place - place // num_patches * num_patches]
            torch.testing.assert_close(tokens[image, slot], expected)


def test_a_decoder_gets_prefix_and_visible_latents_and_the_grid() -> None:
    model, masks = make_autoencoder(), draw_masks_at_random()
    latent, given, grid = inputs_of(model.decoder, model, masks)
    assert latent.shape == (2, 1 + 5, 64)
    assert given is masks
    assert grid == GRID


def test_several_heads_can_read_one_stage() -> None:
    model, masks = make_autoencoder(), draw_masks_at_random()
    second = randomise_parameters(PredictionHead("rgb", 16, 7), seed=3)
    model.heads["rgb_normalized_pixels"] = second
    features: Tensor = model.decoder(*inputs_of(model.decoder, model, masks))["rgb"]
    predictions = model(draw_input_maps(), masks)
    assert set(predictions) == {*ALL_GRANULARITIES, "rgb_normalized_pixels"}
    torch.testing.assert_close(predictions["rgb"], model.heads["rgb"](features))
    torch.testing.assert_close(predictions["rgb_normalized_pixels"], second(features))


@pytest.mark.parametrize("shown", [("rgb",), ("semantic", "instance"), ALL_GRANULARITIES])
def test_every_parameter_has_a_gradient_whatever_is_visible(shown: tuple[str, ...]) -> None:
    """Otherwise DDP would wait for the missing gradients."""
    model = make_autoencoder()
    predictions = model(
        draw_input_maps(), Masks.from_visible_granularities(shown, ALL_GRANULARITIES, batch=2, num_patches=N)
    )
    torch.stack([values.square().sum() for values in predictions.values()]).sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_the_same_model_takes_images_of_other_sizes() -> None:
    model, masks = make_autoencoder(), draw_masks_at_random(num_patches=12)
    assert {
        name: tuple(values.shape) for name, values in model(draw_input_maps(grid=(3, 4)), masks).items()
    } == dict.fromkeys(ALL_GRANULARITIES, (2, 12, 3))


def test_masks_of_other_granularities_are_rejected() -> None:
    model = make_autoencoder()
    for names in (("semantic", "rgb"), ("rgb", "instance", "semantic")):
        with pytest.raises(
            ValueError, match=f"^masks: expected granularities semantic, instance, rgb, got {', '.join(names)}$"
        ):
            model(draw_input_maps(), draw_masks_at_random(names))


def test_maps_of_different_grids_are_rejected() -> None:
    maps = {**draw_input_maps(), "instance": draw_input_maps(grid=(2, 4))["instance"]}
    with pytest.raises(
        UserError, match=r"^instance: has 2×4 patches, but semantic has 2×3. Resize the maps to one image size$"
    ):
        make_autoencoder()(maps, draw_masks_at_random())


def test_predictions_do_not_use_the_global_generator() -> None:
    model = make_autoencoder().train()
    torch.manual_seed(0)
    first = model(draw_input_maps(), draw_masks_at_random())
    state = torch.get_rng_state()
    assert all(
        torch.equal(first[name], values) for name, values in model(draw_input_maps(), draw_masks_at_random()).items()
    )
    assert torch.equal(torch.get_rng_state(), state)
