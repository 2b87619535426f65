"""What the heads say of hidden patches, as photos and maps; what was visible comes back as it went in."""

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
from c2fmae.methods import METHODS, MaskedAutoencoding
from c2fmae.models import patchify
from c2fmae.models.targets import ClassIdTarget, NormalizedPixelTarget, PixelTarget
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes

pytestmark = pytest.mark.numeric

SIZE = (32, 64)


def showing(method: MaskedAutoencoding, *shown: str, size: tuple[int, int] = SIZE, batch: int = 2) -> Masks:
    names, num_patches = method.config.granularities, size[0] * size[1] // method.patch_size**2
    return Masks.from_visible_granularities(shown, names, batch=batch, num_patches=num_patches)


def drawn(method: MaskedAutoencoding, scenes: SceneBatch) -> Masks:
    return method.sample_masks(scenes, progress=0.4, generator=torch.Generator().manual_seed(0))


def source(head: str) -> str:
    """The granularity that a head predicts."""
    return head.partition("_")[0]


def cells(masks: Masks, name: str, size: tuple[int, int] = SIZE, *, patch: int = 16) -> Tensor:
    """Which pixels of a photo, or cells of a map, are hidden."""
    hidden = masks.is_masked[:, masks.granularities.index(name)].view(-1, size[0] // patch, size[1] // patch)
    side = patch if name == "rgb" else patch // 4
    wide = hidden.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
    return wide.unsqueeze(1).expand(-1, 3, -1, -1) if name == "rgb" else wide


class Oracle(nn.Module):
    """Predicts what is right."""

    def __init__(self, method: MaskedAutoencoding) -> None:
        super().__init__()
        self.objectives = method.objectives

    def forward(self, maps: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        predictions = {}
        for name, objective in self.objectives.items():
            target, true = objective.target, maps[objective.granularity]
            if isinstance(target, ClassIdTarget):
                ids = patchify(true, target.patch).long()
                predictions[name] = F.one_hot(ids.where(ids != IGNORE, 0), target.channels).flatten(2).float()
            elif isinstance(target, PixelTarget):
                predictions[name] = target.true_values(maps["rgb"])
        return predictions


@pytest.mark.parametrize("name", list(METHODS))
def test_all_visible_scenes_come_back_as_they_went_in(name: str) -> None:
    method, scenes = build_tiny_method(name), draw_noise_scenes(size=SIZE)
    found = method.predict(scenes, showing(method, *method.config.granularities))
    assert list(found.maps) == list(method.objectives)
    assert (found.keys, found.labels) == (scenes.keys, scenes.labels)
    for head, picture in found.maps.items():
        assert torch.equal(picture, scenes.maps[source(head)])


@pytest.mark.parametrize("name", list(METHODS))
def test_visible_patches_are_pasted_and_hidden_ones_are_not(name: str) -> None:
    method, scenes = build_tiny_method(name), draw_noise_scenes(size=SIZE)
    masks = drawn(method, scenes)
    found = method.predict(scenes, masks)
    for head, picture in found.maps.items():
        true, hidden = scenes.maps[source(head)], cells(masks, source(head))
        assert picture.dtype == true.dtype
        assert picture.shape == true.shape
        assert torch.equal(picture[~hidden], true[~hidden])
        assert (picture[hidden] != true[hidden]).float().mean() > 0.5


@pytest.mark.parametrize("name", list(METHODS))
def test_what_is_predicted_does_not_depend_on_what_is_hidden_from_the_model(name: str) -> None:
    """But for `normalized_pixels`, which borrows the statistics of the true patches."""
    method, scenes = build_tiny_method(name, "targets={}"), draw_noise_scenes(size=SIZE)
    masks, other = drawn(method, scenes), draw_noise_scenes(size=SIZE, seed=1)
    maps = {
        key: torch.where(cells(masks, key), other.maps[key], scenes.maps[key]) for key in method.config.granularities
    }
    found, again = method.predict(scenes, masks), method.predict(SceneBatch(scenes.keys, maps), masks)
    for key in found.maps:
        hidden = cells(masks, key)
        assert torch.equal(found.maps[key][hidden], again.maps[key][hidden])


@pytest.mark.parametrize("shown", [(), ("semantic",), ("instance",), ("rgb",), ("semantic", "rgb")], ids="+".join)
def test_some_granularities_may_be_shown_and_others_not(shown: tuple[str, ...]) -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(size=SIZE)
    found = method.predict(scenes, showing(method, *shown))
    for name in COARSE_TO_FINE:
        assert torch.equal(found.maps[name], scenes.maps[name]) == (name in shown)


def test_these_patches_may_be_shown() -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(1, (32, 32))
    is_masked = torch.tensor([[[True, True, True, True], [True, False, True, True], [False, True, True, False]]])
    found = method.predict(scenes, Masks.from_mask(is_masked, COARSE_TO_FINE, num_visible=3))
    same = {name: found.maps[name][0] == scenes.maps[name][0] for name in COARSE_TO_FINE}
    assert same["instance"][:4, 4:].all()
    assert same["rgb"][:, :16, :16].all()
    assert same["rgb"][:, 16:, 16:].all()
    assert not same["semantic"].all()
    assert not same["instance"][:4, :4].all()
    assert not same["rgb"][:, :16, 16:].all()


@pytest.mark.parametrize("name", list(METHODS))
def test_right_predictions_give_the_scenes(name: str) -> None:
    """`normalized_pixels` too, by the mean and deviation of the true patches, flat ones among them."""
    method, scenes = build_tiny_method(name), draw_noise_scenes(size=SIZE)
    scenes.maps["rgb"][:, :, :16, :16] = 77
    oracle = dataclasses.replace(method, model=Oracle(method))
    found = oracle.predict(scenes, showing(method))
    assert list(found.maps) == list(method.objectives)
    for head, picture in found.maps.items():
        true = scenes.maps[source(head)]
        labelled = (true != IGNORE) | (source(head) == "rgb")
        assert torch.equal(picture[labelled], true[labelled])


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("target", ["pixels", "normalized_pixels"])
def test_every_byte_comes_back_from_its_standardised_form(target: str, channels: int) -> None:
    method = build_tiny_method("mae", f"targets.rgb=[{target}]", f"channels.rgb={channels}")
    scenes = draw_noise_scenes(1, (16, 16), channels=channels)
    scenes.maps["rgb"][0] = torch.arange(256, dtype=torch.uint8).view(16, 16)
    oracle = dataclasses.replace(method, model=Oracle(method))
    found = oracle.predict(scenes, showing(method, size=(16, 16), batch=1))
    assert torch.equal(found.maps["rgb"], scenes.maps["rgb"])


def test_normalised_predictions_borrow_the_statistics_of_the_true_patch() -> None:
    method, scenes = build_tiny_method("mae"), draw_noise_scenes(size=SIZE)
    assert isinstance(method.objectives["rgb"].target, NormalizedPixelTarget)
    maps, masks = method.prepare_inputs(scenes), showing(method)
    with torch.no_grad():
        predicted = method.model(maps, masks)["rgb"]
    true = patchify(maps["rgb"], 16)
    values = predicted * (true.var(dim=2, keepdim=True) + 1e-6).sqrt() + true.mean(dim=2, keepdim=True)
    mean, std = (torch.tensor(each).repeat(256) for each in method.config.mean_and_std("rgb"))
    expected = ((values * std + mean) * 255).round().clamp(0, 255)
    found = patchify(method.predict(scenes, masks).maps["rgb"], 16)
    assert (found - expected).abs().max() <= 1  # rounding
    assert (found == expected).float().mean() > 0.99


def test_predictions_stay_within_what_can_be_shown() -> None:
    class Loud(nn.Module):
        def forward(self, maps: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
            values = torch.full((2, 8, 768), -100.0)
            values[:, 4:] = 100
            return {"rgb": values}

    method, scenes = build_tiny_method("mae", "targets={}"), draw_noise_scenes(size=SIZE)
    found = dataclasses.replace(method, model=Loud()).predict(scenes, showing(method)).maps["rgb"]
    assert (found[:, :, :16] == 0).all()
    assert (found[:, :, 16:] == 255).all()


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", list(METHODS))
def test_photos_may_have_any_number_of_channels(name: str, channels: int) -> None:
    method = build_tiny_method(name, f"channels.rgb={channels}")
    scenes = draw_noise_scenes(size=SIZE, channels=channels)
    some = method.predict(scenes, drawn(method, scenes)).maps["rgb"]
    assert (some.shape, some.dtype) == ((2, channels, *SIZE), torch.uint8)
    everything = method.predict(scenes, showing(method, *method.config.granularities))
    assert torch.equal(everything.maps["rgb"], scenes.maps["rgb"])
    loss = method.compute_step_loss(scenes, progress=0.0, generator=torch.Generator().manual_seed(0))
    assert loss.total.isfinite()


def test_other_sizes_and_patches_than_those_of_training() -> None:
    for size in ((16, 16), (48, 80), (64, 32)):
        method, scenes = build_tiny_method(), draw_noise_scenes(size=size)
        masks = drawn(method, scenes)
        for head, picture in method.predict(scenes, masks).maps.items():
            hidden = cells(masks, head, size)
            assert torch.equal(picture[~hidden], scenes.maps[head][~hidden])
    method = build_tiny_method("c2fmae", "encoder.name=vit_small_patch14_dinov2", size=(28, 42))
    scenes = draw_noise_scenes(size=(28, 42), stride=2)
    found = method.predict(scenes, showing(method, "instance", size=(28, 42)))
    assert [tuple(found.maps[name].shape[-2:]) for name in COARSE_TO_FINE] == [(14, 21), (14, 21), (28, 42)]
    assert torch.equal(found.maps["instance"], scenes.maps["instance"])


def test_two_targets_of_a_granularity_make_two_pictures() -> None:
    method, scenes = build_tiny_method("multimae"), draw_noise_scenes(size=SIZE)
    found = method.predict(scenes, drawn(method, scenes))
    assert list(found.maps) == ["semantic", "instance", "rgb", "rgb_normalized_pixels"]
    assert found.maps["rgb_normalized_pixels"].dtype == torch.uint8
    assert not torch.equal(found.maps["rgb"], found.maps["rgb_normalized_pixels"])


@pytest.mark.parametrize("is_training", [True, False])
def test_nothing_is_left_behind(is_training: bool) -> None:
    method, scenes = build_tiny_method("c2fmae", "encoder.drop_path=0.5"), draw_noise_scenes(size=SIZE)
    method.model.train(is_training)
    before = {name: each.clone() for name, each in scenes.maps.items()}
    generator = torch.get_rng_state()
    method.predict(scenes, drawn(method, scenes))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(scenes.maps[name], before[name]) for name in before)
    assert all(module.training == is_training for module in method.model.modules())
    assert all(parameter.grad is None for parameter in method.model.parameters())


def test_layers_are_not_dropped_from_a_model_in_training() -> None:
    method, scenes = build_tiny_method("c2fmae", "encoder.drop_path=0.9"), draw_noise_scenes(size=SIZE)
    masks = drawn(method, scenes)
    first, second = (method.predict(scenes, masks).maps for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_graph_is_made() -> None:
    class Watched(nn.Module):
        def forward(self, *args: object) -> dict[str, Tensor]:
            assert not torch.is_grad_enabled()
            return method.model(*args)  # type: ignore[no-any-return]

    method, scenes = build_tiny_method(), draw_noise_scenes(size=SIZE)
    dataclasses.replace(method, model=Watched()).predict(scenes, drawn(method, scenes))
    assert torch.is_grad_enabled()


def test_a_prediction_that_fails_leaves_the_model_in_training() -> None:
    class Failing(nn.Module):
        def forward(self, *args: object) -> dict[str, Tensor]:
            raise ValueError("no")

    method, scenes = build_tiny_method(), draw_noise_scenes(size=SIZE)
    failing = dataclasses.replace(method, model=Failing())
    with pytest.raises(ValueError, match="^no$"):
        failing.predict(scenes, drawn(method, scenes))
    assert failing.model.training


def test_a_photo_alone_is_enough_where_nothing_else_is_shown() -> None:
    method, scenes = build_tiny_method("c2fmae", "targets.rgb=[pixels, normalized_pixels]"), draw_noise_scenes()
    masks = Masks.from_visible_granularities({"rgb"}, COARSE_TO_FINE, batch=2, num_patches=4)
    whole = method.predict(scenes, masks)
    alone = method.predict(SceneBatch(scenes.keys, {"rgb": scenes.maps["rgb"]}), masks)
    assert set(alone.maps) == set(whole.maps)
    assert all(torch.equal(alone.maps[name], whole.maps[name]) for name in whole.maps)


def test_maps_alone_are_enough_too_but_for_pictures_that_need_the_true_photo() -> None:
    method, scenes = (
        build_tiny_method("c2fmae", "targets.rgb=[pixels, normalized_pixels]"),
        draw_noise_scenes(size=(32, 48)),
    )
    masks = Masks.from_visible_granularities({"semantic"}, COARSE_TO_FINE, batch=2, num_patches=6)
    whole = method.predict(scenes, masks)
    alone = method.predict(SceneBatch(scenes.keys, {"semantic": scenes.maps["semantic"]}), masks)
    assert set(alone.maps) == {"semantic", "instance", "rgb"}
    assert all(torch.equal(alone.maps[name], whole.maps[name]) for name in alone.maps)


def test_what_is_to_be_shown_must_be_there() -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes()
    masks = Masks.from_visible_granularities({"rgb"}, COARSE_TO_FINE, batch=2, num_patches=4)
    with pytest.raises(UserError) as caught:
        method.predict(SceneBatch(scenes.keys, {"semantic": scenes.maps["semantic"]}), masks)
    assert str(caught.value) == "the scenes lack rgb, of which the masks show patches"
