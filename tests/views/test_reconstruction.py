import numpy as np
import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import COARSE_TO_FINE
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.data import open_scenes
from c2fmae.report.drawing import colour_classes, colour_instances
from c2fmae.views import reconstruction
from c2fmae.views.reconstruction import (
    draw_reconstruction,
    parse_visible,
    sample_requested_masks,
    sample_training_masks,
    sample_visible_masks,
    select_scenes,
)
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes
from tests.views.sheets import RecordedSheet

pytestmark = pytest.mark.numeric


def sample_visible(amounts: dict[str, str], *, seed: int = 0, batch: int = 3, num_patches: int = 196) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return sample_visible_masks(amounts, COARSE_TO_FINE, batch_size=batch, num_patches=num_patches, generator=generator)


@pytest.fixture
def sheet(monkeypatch: pytest.MonkeyPatch) -> RecordedSheet:
    return RecordedSheet(monkeypatch, reconstruction)


def upscale(tile: np.ndarray, factor: int) -> np.ndarray:
    return tile.repeat(factor, axis=0).repeat(factor, axis=1)


@pytest.mark.parametrize(
    ("amount", "count"), [("all", 196), ("none", 0), ("0", 0), ("40", 40), ("196", 196), ("25%", 49), ("12.5%", 24)]
)
def test_the_requested_number_of_patches_is_visible_and_none_of_other_granularities(amount: str, count: int) -> None:
    masks = sample_visible({"instance": amount})
    assert masks.granularities == COARSE_TO_FINE
    assert (196 - masks.num_masked).tolist() == [[0, count, 0]] * 3


def test_visible_patches_are_deterministic_differ_between_images_and_grow_with_the_amount() -> None:
    few, many = sample_visible({"rgb": "40"}), sample_visible({"rgb": "50%", "semantic": "3"})
    assert len({tuple(row) for row in few.visible_idx.tolist()}) == 3
    assert torch.equal(few.is_masked, sample_visible({"rgb": "40"}).is_masked)
    assert not torch.equal(few.is_masked, sample_visible({"rgb": "40"}, seed=1).is_masked)
    assert not (many.is_masked & ~few.is_masked).any()


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        ({"rgb": "200"}, "--visible rgb:200: expected at most 196, the number of patches of rgb"),
        ({"rgb": "101%"}, "--visible rgb:101%: expected at most 196, the number of patches of rgb"),
        (
            {"rgb": "much"},
            "--visible rgb:much: expected all, none, a number of patches or a percentage of them, "
            "as in rgb:40 or rgb:25%",
        ),
        (
            {"rgb": "-4"},
            "--visible rgb:-4: expected all, none, a number of patches or a percentage of them, "
            "as in rgb:40 or rgb:25%",
        ),
        (
            {"rbg": "all"},
            "--visible: no granularity named 'rbg'. Did you mean 'rgb'? Known: instance, rgb, semantic",
        ),
    ],
)
def test_an_invalid_amount_is_an_error(amounts: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        sample_visible(amounts)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rgb"], "--visible rgb: expected GRANULARITY:AMOUNT, as in rgb:all"),
        (["rgb:"], "--visible rgb:: expected GRANULARITY:AMOUNT, as in rgb:all"),
        ([":40"], "--visible :40: expected GRANULARITY:AMOUNT, as in rgb:all"),
        (["rgb:all", "rgb:40"], "--visible rgb:40: rgb is given twice. Remove one"),
    ],
)
def test_invalid_visible_options_are_an_error(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_visible(words)
    assert str(caught.value) == message


def test_each_granularity_has_true_visible_and_predicted_tiles(sheet: RecordedSheet) -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(2)
    masks = sample_visible({"semantic": "1", "rgb": "all"}, batch=2, num_patches=4)
    predicted = method.predict(scenes, masks)
    figure = draw_reconstruction(method, scenes, masks, model_name="runs/first, step 50", class_names=["sky", "sea"])
    assert list(sheet.columns) == [
        *("semantic map", "semantic map,\nvisible", "semantic map,\npredicted"),
        *("instance map", "instance map,\nvisible", "instance map,\npredicted"),
        *("image", "image,\nvisible", "image,\npredicted"),
        "classes",
    ]
    assert sheet.texts["row_titles"] == ["scene-0", "scene-1"]
    assert (
        sheet.texts["subtitle"] == "runs/first, step 50 · visible of 4 patches each: semantic 1, instance none, rgb all"
    )
    assert sheet.texts["footer"] == "Visible patches are pasted into the predictions."
    for index in range(2):
        for title, batch in (("", scenes), (",\npredicted", predicted)):
            maps = {name: tensor[index].numpy() for name, tensor in batch.maps.items()}
            assert np.array_equal(
                sheet.columns[f"semantic map{title}"][index], upscale(colour_classes(maps["semantic"]), 16)
            )
            assert np.array_equal(
                sheet.columns[f"instance map{title}"][index], upscale(colour_instances(maps["instance"]), 16)
            )
            assert np.array_equal(sheet.columns[f"image{title}"][index], upscale(maps["rgb"].transpose(1, 2, 0), 4))
    assert figure.width > 10 * 128
    assert figure.height > 2 * 128


def test_visible_tiles_do_not_depend_on_hidden_patches(sheet: RecordedSheet) -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(1)
    masks = sample_visible({"rgb": "3"}, batch=1, num_patches=4)
    draw_reconstruction(method, scenes, masks)
    before = sheet.columns["image,\nvisible"][0]
    other = {**scenes.maps, "rgb": 255 - scenes.maps["rgb"]}
    draw_reconstruction(method, SceneBatch(scenes.keys, other), masks)
    after = sheet.columns["image,\nvisible"][0]
    hidden = masks.is_masked[0, 2].view(2, 2).numpy().repeat(64, axis=0).repeat(64, axis=1)
    assert np.array_equal(before[hidden], after[hidden])
    assert (before[~hidden] != after[~hidden]).mean() > 0.9
    assert len(np.unique(sheet.columns["instance map,\nvisible"][0].reshape(-1, 3), axis=0)) == 2  # and the edges


def test_large_tiles_are_not_upscaled(sheet: RecordedSheet) -> None:
    method, scenes = build_tiny_method(size=(128, 160)), draw_noise_scenes(1, (128, 160))
    draw_reconstruction(method, scenes, sample_training_masks(method, scenes))
    assert {tile.shape for tiles in sheet.columns.values() for tile in tiles} == {(128, 160, 3)}


def test_a_second_target_has_a_column_and_a_note_on_its_statistics(sheet: RecordedSheet) -> None:
    method = build_tiny_method("c2fmae", "targets.rgb=[pixels, normalized_pixels]")
    scenes = draw_noise_scenes(1)
    draw_reconstruction(method, scenes, sample_training_masks(method, scenes))
    assert "image,\npredicted as normalized pixels" in sheet.columns
    assert sheet.texts["footer"] == (
        "Visible patches are pasted into the predictions.\n"
        "image, predicted as normalized pixels: with the true mean and deviation of each patch."
    )


def test_maps_that_the_scenes_lack_are_predicted_alike(sheet: RecordedSheet) -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(2)
    images = SceneBatch(scenes.keys, {"rgb": scenes.maps["rgb"]})
    draw_reconstruction(method, images, sample_requested_masks(method, images, {"rgb": "50%"}))
    alone = dict(sheet.columns)
    draw_reconstruction(method, scenes, sample_requested_masks(method, scenes, {"rgb": "50%"}))
    for name in ("semantic map", "instance map"):
        assert not np.array_equal(alone[name][0], sheet.columns[name][0])
        assert np.array_equal(alone[name][0], alone[name][1])
        for title in ("visible", "predicted"):
            assert np.array_equal(alone[f"{name},\n{title}"], sheet.columns[f"{name},\n{title}"])


def test_images_without_maps_need_visible_amounts() -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(1)
    images = SceneBatch(scenes.keys, {"rgb": scenes.maps["rgb"]})
    with pytest.raises(UserError) as caught:
        sample_training_masks(method, images)
    assert str(caught.value) == (
        "the data has no maps of semantic, instance. Choose the visible patches, as in --visible rgb:25%"
    )


def test_classes_of_a_map_are_listed_largest_first() -> None:
    ids = np.array([3, 3, 3, 0, 0, 255, 7, 3])
    palette = colour_classes(np.arange(256)[None])[0].tolist()
    assert reconstruction._class_colours(ids, ["sky", "sea", "sand", "tree"]) == {
        "tree": tuple(palette[3]),
        "sky": tuple(palette[0]),
        "class 7": tuple(palette[7]),
        "not labelled": tuple(palette[255]),
    }


def test_depth_is_grey_between_the_extremes_of_the_true_map() -> None:
    depth = np.array([[2.0, 4.0], [6.0, 9.0]], np.float32)
    nearer = np.array([[2.0, 2.0], [6.0, 3.0]], np.float32)
    assert reconstruction._colour_map("depth", depth, nearer)[..., 0].tolist() == [[0, 127], [255, 255]]


def test_scenes_are_evenly_spaced_and_cropped_for_the_method() -> None:
    method = build_tiny_method("c2fmae", "channels.semantic=23", size=(64, 64))
    scenes = select_scenes(method, open_scenes("generated", size=64, length=10), 2)
    assert scenes.keys == ("00000002", "00000007")
    assert {name: tuple(maps.shape) for name, maps in scenes.maps.items()} == {
        "semantic": (2, 16, 16),
        "instance": (2, 16, 16),
        "rgb": (2, 3, 64, 64),
    }
    assert len(select_scenes(method, open_scenes("generated", size=64, length=3), 6)) == 3


def test_drawing_is_deterministic_and_preserves_training_mode() -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(1)
    method.model.train()
    masks = sample_training_masks(method, scenes)
    first, second = (draw_reconstruction(method, scenes, masks).tobytes() for _ in range(2))
    assert first == second
    assert method.model.training
