"""Predictions as images and maps: hidden patches are predicted, visible patches are copied."""

import dataclasses
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import COARSE_TO_FINE, IGNORE
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.methods import MaskedAutoencoding
from c2fmae.models import patchify
from c2fmae.models.targets import ClassIdTarget, NormalizedPixelTarget, PixelTarget
from tests.methods.tiny_methods import MASKED_METHODS, build_tiny_method, draw_noise_scenes

pytestmark = pytest.mark.numeric

SIZE = (32, 64)


def show_granularities(method: MaskedAutoencoding, *shown: str, size: tuple[int, int] = SIZE, batch: int = 2) -> Masks:
    names, num_patches = method.config.granularities, size[0] * size[1] // method.patch_size**2
    return Masks.from_visible_granularities(shown, names, batch=batch, num_patches=num_patches)


def draw_masks(method: MaskedAutoencoding, scenes: SceneBatch) -> Masks:
    return method.sample_masks(scenes, progress=0.4, generator=torch.Generator().manual_seed(0))


def head_granularity(head: str) -> str:
    """Return the granularity that a head predicts."""
    return head.partition("_")[0]


def hidden_cells(masks: Masks, name: str, size: tuple[int, int] = SIZE, *, patch: int = 16) -> Tensor:
    """Return True for hidden pixels of an image, or hidden cells of a map."""
    hidden = masks.is_masked[:, masks.granularities.index(name)].view(-1, size[0] // patch, size[1] // patch)
    side = patch if name == "rgb" else patch // 4
    upsampled = hidden.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
    return upsampled.unsqueeze(1).expand(-1, 3, -1, -1) if name == "rgb" else upsampled


class PerfectModel(nn.Module):
    """Predicts the targets themselves."""

    def __init__(self, method: MaskedAutoencoding) -> None:
        super().__init__()
        self.objectives = method.objectives

    def forward(self, maps: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        predictions = {}
        for name, objective in self.objectives.items():
            target, target_map = objective.target, maps[objective.granularity]
            if isinstance(target, ClassIdTarget):
                ids = patchify(target_map, target.patch).long()
                predictions[name] = F.one_hot(ids.where(ids != IGNORE, 0), target.channels).flatten(2).float()
            elif isinstance(target, PixelTarget):
                predictions[name] = target.true_values(maps["rgb"])
        return predictions


def list_predicted(method: MaskedAutoencoding) -> list[str]:
    """Return the names of the heads from whose predictions maps follow."""
    return [name for name, objective in method.objectives.items() if getattr(objective.target, "has_maps", True)]


@pytest.mark.parametrize("name", MASKED_METHODS)
def test_scenes_with_all_patches_visible_are_unchanged(name: str) -> None:
    method, scenes = build_tiny_method(name), draw_noise_scenes(size=SIZE)
    predicted = method.predict(scenes, show_granularities(method, *method.config.granularities))
    assert list(predicted.maps) == list_predicted(method)
    assert (predicted.keys, predicted.labels) == (scenes.keys, scenes.labels)
    for head, predicted_map in predicted.maps.items():
        assert torch.equal(predicted_map, scenes.maps[head_granularity(head)])


@pytest.mark.parametrize("name", MASKED_METHODS)
def test_visible_patches_are_copied_and_hidden_patches_predicted(name: str) -> None:
    method, scenes = build_tiny_method(name), draw_noise_scenes(size=SIZE)
    masks = draw_masks(method, scenes)
    predicted = method.predict(scenes, masks)
    for head, predicted_map in predicted.maps.items():
        target_map, hidden = scenes.maps[head_granularity(head)], hidden_cells(masks, head_granularity(head))
        assert predicted_map.dtype == target_map.dtype
        assert predicted_map.shape == target_map.shape
        assert torch.equal(predicted_map[~hidden], target_map[~hidden])
        assert (predicted_map[hidden] != target_map[hidden]).float().mean() > 0.5


@pytest.mark.parametrize("name", MASKED_METHODS)
def test_predictions_do_not_depend_on_hidden_patches(name: str) -> None:
    """Except for `normalized_pixels`, which uses the statistics of the true patches."""
    method, scenes = build_tiny_method(name, "targets={}"), draw_noise_scenes(size=SIZE)
    masks, other = draw_masks(method, scenes), draw_noise_scenes(size=SIZE, seed=1)
    maps = {
        key: torch.where(hidden_cells(masks, key), other.maps[key], scenes.maps[key])
        for key in method.config.granularities
    }
    predicted, repeated = method.predict(scenes, masks), method.predict(SceneBatch(scenes.keys, maps), masks)
    for key in predicted.maps:
        hidden = hidden_cells(masks, key)
        assert torch.equal(predicted.maps[key][hidden], repeated.maps[key][hidden])


@pytest.mark.parametrize("shown", [(), ("semantic",), ("instance",), ("rgb",), ("semantic", "rgb")], ids="+".join)
def test_any_subset_of_granularities_may_be_visible(shown: tuple[str, ...]) -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(size=SIZE)
    predicted = method.predict(scenes, show_granularities(method, *shown))
    for name in COARSE_TO_FINE:
        assert torch.equal(predicted.maps[name], scenes.maps[name]) == (name in shown)


def test_individual_patches_may_be_visible() -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(1, (32, 32))
    is_masked = torch.tensor([[[True, True, True, True], [True, False, True, True], [False, True, True, False]]])
    predicted = method.predict(scenes, Masks.from_mask(is_masked, COARSE_TO_FINE, num_visible=3))
    same = {name: predicted.maps[name][0] == scenes.maps[name][0] for name in COARSE_TO_FINE}
    assert same["instance"][:4, 4:].all()
    assert same["rgb"][:, :16, :16].all()
    assert same["rgb"][:, 16:, 16:].all()
    assert not same["semantic"].all()
    assert not same["instance"][:4, :4].all()
    assert not same["rgb"][:, :16, 16:].all()


@pytest.mark.parametrize("name", MASKED_METHODS)
def test_perfect_predictions_give_the_scenes(name: str) -> None:
    """Also for `normalized_pixels`, with the mean and deviation of the true patches, some of which are constant."""
    method, scenes = build_tiny_method(name), draw_noise_scenes(size=SIZE)
    scenes.maps["rgb"][:, :, :16, :16] = 77
    perfect = dataclasses.replace(method, model=PerfectModel(method))
    predicted = perfect.predict(scenes, show_granularities(method))
    assert list(predicted.maps) == list_predicted(method)
    for head, predicted_map in predicted.maps.items():
        target_map = scenes.maps[head_granularity(head)]
        labelled = (target_map != IGNORE) | (head_granularity(head) == "rgb")
        assert torch.equal(predicted_map[labelled], target_map[labelled])


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("target", ["pixels", "normalized_pixels"])
def test_every_pixel_value_is_recovered_from_its_standardised_form(target: str, channels: int) -> None:
    method = build_tiny_method("mae", f"targets.rgb=[{target}]", f"channels.rgb={channels}")
    scenes = draw_noise_scenes(1, (16, 16), channels=channels)
    scenes.maps["rgb"][0] = torch.arange(256, dtype=torch.uint8).view(16, 16)
    perfect = dataclasses.replace(method, model=PerfectModel(method))
    predicted = perfect.predict(scenes, show_granularities(method, size=(16, 16), batch=1))
    assert torch.equal(predicted.maps["rgb"], scenes.maps["rgb"])


def test_normalised_predictions_use_the_statistics_of_the_true_patch() -> None:
    method, scenes = build_tiny_method("mae"), draw_noise_scenes(size=SIZE)
    assert isinstance(method.objectives["rgb"].target, NormalizedPixelTarget)
    maps, masks = method.prepare_inputs(scenes), show_granularities(method)
    with torch.no_grad():
        predicted = method.model(maps, masks)["rgb"]
    target_map = patchify(maps["rgb"], 16)
    values = predicted * (target_map.var(dim=2, keepdim=True) + 1e-6).sqrt() + target_map.mean(dim=2, keepdim=True)
    mean, std = (torch.tensor(values).repeat(256) for values in method.config.mean_and_std("rgb"))
    expected = ((values * std + mean) * 255).round().clamp(0, 255)
    predicted = patchify(method.predict(scenes, masks).maps["rgb"], 16)
    assert (predicted - expected).abs().max() <= 1  # rounding
    assert (predicted == expected).float().mean() > 0.99


def test_predictions_are_clamped_to_pixel_values() -> None:
    class SaturatedModel(nn.Module):
        def forward(self, maps: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
            values = torch.full((2, 8, 768), -100.0)
            values[:, 4:] = 100
            return {"rgb": values}

    method, scenes = build_tiny_method("mae", "targets={}"), draw_noise_scenes(size=SIZE)
    predicted = (
        dataclasses.replace(method, model=SaturatedModel()).predict(scenes, show_granularities(method)).maps["rgb"]
    )
    assert (predicted[:, :, :16] == 0).all()
    assert (predicted[:, :, 16:] == 255).all()


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", [name for name in MASKED_METHODS if name != "maskfeat"])
def test_images_may_have_any_number_of_channels(name: str, channels: int) -> None:
    method = build_tiny_method(name, f"channels.rgb={channels}")
    scenes = draw_noise_scenes(size=SIZE, channels=channels)
    some = method.predict(scenes, draw_masks(method, scenes)).maps["rgb"]
    assert (some.shape, some.dtype) == ((2, channels, *SIZE), torch.uint8)
    everything = method.predict(scenes, show_granularities(method, *method.config.granularities))
    assert torch.equal(everything.maps["rgb"], scenes.maps["rgb"])
    loss = method.compute_step_loss(scenes, progress=0.0, generator=torch.Generator().manual_seed(0))
    assert loss.total.isfinite()


def test_other_image_and_patch_sizes_are_supported() -> None:
    for size in ((16, 16), (48, 80), (64, 32)):
        method, scenes = build_tiny_method(), draw_noise_scenes(size=size)
        masks = draw_masks(method, scenes)
        for head, predicted_map in method.predict(scenes, masks).maps.items():
            hidden = hidden_cells(masks, head, size)
            assert torch.equal(predicted_map[~hidden], scenes.maps[head][~hidden])
    method = build_tiny_method("c2fmae", "encoder.name=vit_small_patch14_dinov2", size=(28, 42))
    scenes = draw_noise_scenes(size=(28, 42), stride=2)
    predicted = method.predict(scenes, show_granularities(method, "instance", size=(28, 42)))
    assert [tuple(predicted.maps[name].shape[-2:]) for name in COARSE_TO_FINE] == [(14, 21), (14, 21), (28, 42)]
    assert torch.equal(predicted.maps["instance"], scenes.maps["instance"])


def test_two_targets_of_a_granularity_give_two_maps() -> None:
    method, scenes = build_tiny_method("multimae"), draw_noise_scenes(size=SIZE)
    predicted = method.predict(scenes, draw_masks(method, scenes))
    assert list(predicted.maps) == ["semantic", "instance", "rgb", "rgb_normalized_pixels"]
    assert predicted.maps["rgb_normalized_pixels"].dtype == torch.uint8
    assert not torch.equal(predicted.maps["rgb"], predicted.maps["rgb_normalized_pixels"])


@pytest.mark.parametrize("is_training", [True, False])
def test_prediction_does_not_modify_model_scenes_or_generator(is_training: bool) -> None:
    method, scenes = build_tiny_method("c2fmae", "encoder.drop_path=0.5"), draw_noise_scenes(size=SIZE)
    method.model.train(is_training)
    before = {name: map_.clone() for name, map_ in scenes.maps.items()}
    generator = torch.get_rng_state()
    method.predict(scenes, draw_masks(method, scenes))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(scenes.maps[name], before[name]) for name in before)
    assert all(module.training == is_training for module in method.model.modules())
    assert all(parameter.grad is None for parameter in method.model.parameters())


def test_drop_path_is_disabled_for_a_model_in_training_mode() -> None:
    method, scenes = build_tiny_method("c2fmae", "encoder.drop_path=0.9"), draw_noise_scenes(size=SIZE)
    masks = draw_masks(method, scenes)
    first, second = (method.predict(scenes, masks).maps for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradients_are_disabled() -> None:
    class GradCheckingModel(nn.Module):
        def forward(self, *args: object) -> dict[str, Tensor]:
            assert not torch.is_grad_enabled()
            return method.model(*args)  # type: ignore[no-any-return]

    method, scenes = build_tiny_method(), draw_noise_scenes(size=SIZE)
    dataclasses.replace(method, model=GradCheckingModel()).predict(scenes, draw_masks(method, scenes))
    assert torch.is_grad_enabled()


def test_the_training_mode_is_restored_after_a_failed_prediction() -> None:
    class FailingModel(nn.Module):
        def forward(self, *args: object) -> dict[str, Tensor]:
            raise ValueError("no")

    method, scenes = build_tiny_method(), draw_noise_scenes(size=SIZE)
    failing = dataclasses.replace(method, model=FailingModel())
    with pytest.raises(ValueError, match="^no$"):
        failing.predict(scenes, draw_masks(method, scenes))
    assert failing.model.training


def test_images_alone_are_enough_if_nothing_else_is_visible() -> None:
    method, scenes = build_tiny_method("c2fmae", "targets.rgb=[pixels, normalized_pixels]"), draw_noise_scenes()
    masks = Masks.from_visible_granularities({"rgb"}, COARSE_TO_FINE, batch=2, num_patches=4)
    complete = method.predict(scenes, masks)
    reduced = method.predict(SceneBatch(scenes.keys, {"rgb": scenes.maps["rgb"]}), masks)
    assert set(reduced.maps) == set(complete.maps)
    assert all(torch.equal(reduced.maps[name], complete.maps[name]) for name in complete.maps)


def test_maps_alone_are_enough_except_for_targets_that_need_the_image() -> None:
    method, scenes = (
        build_tiny_method("c2fmae", "targets.rgb=[pixels, normalized_pixels]"),
        draw_noise_scenes(size=(32, 48)),
    )
    masks = Masks.from_visible_granularities({"semantic"}, COARSE_TO_FINE, batch=2, num_patches=6)
    complete = method.predict(scenes, masks)
    reduced = method.predict(SceneBatch(scenes.keys, {"semantic": scenes.maps["semantic"]}), masks)
    assert set(reduced.maps) == {"semantic", "instance", "rgb"}
    assert all(torch.equal(reduced.maps[name], complete.maps[name]) for name in reduced.maps)


def test_visible_granularities_must_be_in_the_scenes() -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes()
    masks = Masks.from_visible_granularities({"rgb"}, COARSE_TO_FINE, batch=2, num_patches=4)
    with pytest.raises(UserError) as caught:
        method.predict(SceneBatch(scenes.keys, {"semantic": scenes.maps["semantic"]}), masks)
    assert str(caught.value) == (
        "rgb: the masks have visible patches, but the scenes have no such map. Hide all of rgb"
    )
