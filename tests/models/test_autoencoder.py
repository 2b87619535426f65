from typing import Any

import pytest
import torch
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.models import Head, MultiGranularAutoencoder, sincos_positions
from tests.models.tiny_models import THREE, autoencoder_of, fill, maps_of, masks_of

GRID, N = (2, 3), 6


def inputs_of(part: nn.Module, model: MultiGranularAutoencoder, masks: Masks, **maps: Any) -> tuple[Any, ...]:
    """What a part of a model is called with."""
    seen: list[tuple[Any, ...]] = []
    handle = part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    model(maps_of(**maps), masks)
    handle.remove()
    [inputs] = seen
    return inputs


@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (1, 4)])
def test_every_token_has_the_position_of_its_patch_whatever_its_granularity(grid: tuple[int, int]) -> None:
    num_patches = grid[0] * grid[1]
    model, masks = autoencoder_of(), masks_of(num_patches=num_patches, num_visible=2 * num_patches)
    where, bare = sincos_positions(grid, 64), model.embeddings(maps_of(grid=grid), masks)
    [tokens] = inputs_of(model.encoder, model, masks, grid=grid)
    for image in range(2):
        for slot, place in enumerate(masks.visible_idx[image].tolist()):
            expected = bare[image, slot] + where[place - place // num_patches * num_patches]
            torch.testing.assert_close(tokens[image, slot], expected)


def test_a_decoder_gets_the_latents_of_global_token_and_visible_patches_and_the_grid() -> None:
    model, masks = autoencoder_of(), masks_of()
    latent, given, grid = inputs_of(model.decoder, model, masks)
    assert latent.shape == (2, 1 + 5, 64)
    assert given is masks
    assert grid == GRID


def test_heads_of_one_stage_turn_the_same_features_into_predictions_of_their_own() -> None:
    model, masks = autoencoder_of(), masks_of()
    second = fill(Head("rgb", 16, 7), seed=3)
    model.heads["rgb_normalized_pixels"] = second
    features: Tensor = model.decoder(*inputs_of(model.decoder, model, masks))["rgb"]
    predictions = model(maps_of(), masks)
    assert set(predictions) == {*THREE, "rgb_normalized_pixels"}
    torch.testing.assert_close(predictions["rgb"], model.heads["rgb"](features))
    torch.testing.assert_close(predictions["rgb_normalized_pixels"], second(features))


@pytest.mark.parametrize("shown", [("rgb",), ("semantic", "instance"), THREE])
def test_every_parameter_has_a_gradient_whatever_is_visible(shown: tuple[str, ...]) -> None:
    """Or processes would wait for each other's forever."""
    model = autoencoder_of()
    predictions = model(maps_of(), Masks.showing(shown, THREE, batch=2, num_patches=N))
    torch.stack([values.square().sum() for values in predictions.values()]).sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_the_same_model_takes_photos_of_other_sizes() -> None:
    model, masks = autoencoder_of(), masks_of(num_patches=12)
    assert {name: tuple(values.shape) for name, values in model(maps_of(grid=(3, 4)), masks).items()} == dict.fromkeys(
        THREE, (2, 12, 3)
    )


def test_a_model_refuses_the_masks_of_other_granularities() -> None:
    model = autoencoder_of()
    for names in (("semantic", "rgb"), ("rgb", "instance", "semantic")):
        with pytest.raises(
            ValueError, match=f"^masks: expected those of semantic, instance, rgb, got those of {', '.join(names)}$"
        ):
            model(maps_of(), masks_of(names))


def test_a_model_refuses_maps_of_different_grids() -> None:
    maps = {**maps_of(), "instance": maps_of(grid=(2, 4))["instance"]}
    with pytest.raises(UserError, match=r"^instance has 2×4 patches, but semantic 2×3$"):
        autoencoder_of()(maps, masks_of())


def test_predictions_do_not_depend_on_global_noise() -> None:
    model = autoencoder_of().train()
    torch.manual_seed(0)
    first = model(maps_of(), masks_of())
    state = torch.get_rng_state()
    assert all(torch.equal(first[name], values) for name, values in model(maps_of(), masks_of()).items())
    assert torch.equal(torch.get_rng_state(), state)
