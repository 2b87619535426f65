import numpy as np
import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene
from c2fmae.eval.analysis.attention import compute_image_attention
from c2fmae.models.backbones import Backbone
from c2fmae.views import attention
from c2fmae.views.attention import (
    apply_colour_map,
    attention_to_heatmap,
    draw_attention,
    find_instance_edges,
    measure_attention,
)
from c2fmae.views.backbone_figures import TILE_HEIGHT, load_scenes, wrap_path
from c2fmae.views.config import BackboneFigureConfig
from c2fmae.views.scenes import crop_scenes
from tests.eval.analysis.sampled_processes import backbone_from_vit
from tests.models.tiny_models import make_tiny_vit, randomise_parameters
from tests.views.sheets import RecordedSheet

pytestmark = pytest.mark.numeric

SMALL = BackboneFigureConfig(scenes=2)


def backbone(seed: int = 0, **options: object) -> Backbone:
    """Return a backbone whose attention is far from uniform."""
    return backbone_from_vit(randomise_parameters(make_tiny_vit(**{"img_size": (32, 32), **options}), seed, std=0.3))


@pytest.fixture
def sheet(monkeypatch: pytest.MonkeyPatch) -> RecordedSheet:
    return RecordedSheet(monkeypatch, attention)


def test_the_figure_has_a_row_for_each_scene_and_a_column_for_each_backbone(sheet: RecordedSheet) -> None:
    figure = draw_attention(SMALL, [("first", backbone()), ("second", backbone(1))])
    assert [len(row) for row in sheet.rows] == [4, 3]  # the scale is beside the first row
    assert sheet.column_titles == [
        "image",
        "first\n32×32 px, layer 2 of 2",
        "second\n32×32 px, layer 2 of 2",
        "attention relative\nto uniform",
    ]
    _, first, second = (tile[:TILE_HEIGHT] for tile in sheet.rows[1])
    assert not np.array_equal(first, second)
    repeated = draw_attention(SMALL, [("first", backbone()), ("second", backbone(1))])
    assert np.array_equal(np.asarray(figure), np.asarray(repeated))
    draw_attention(SMALL, [("first", backbone())])
    assert np.array_equal(sheet.rows[1][1][:TILE_HEIGHT], first)  # whatever other backbones there are


def test_equal_weights_give_equal_tiles(sheet: RecordedSheet) -> None:
    draw_attention(SMALL, [("first", backbone()), ("second", backbone())])
    for row in sheet.rows:
        assert np.array_equal(row[1], row[2])


def test_measured_attention_is_that_of_the_requested_layer() -> None:
    model, config = backbone(), BackboneFigureConfig(scenes=3, layer=1)
    scenes = load_scenes(config, [("tiny", model)])
    relative, fractions, chance = measure_attention(config, "tiny", model, scenes)
    images = crop_scenes(scenes, (32, 32)).maps["rgb"]
    expected = compute_image_attention(model, model.standardise(images), [1])[:, 0]
    torch.testing.assert_close(relative.flatten(1), 4 * expected)
    assert relative.shape == (3, 2, 2)
    torch.testing.assert_close(relative.mean(dim=(1, 2)), torch.ones(3))
    assert (fractions > 0).all()
    assert (chance > 0).all()


def test_the_colour_scale_is_logarithmic_around_uniform_attention() -> None:
    relative = torch.tensor([1 / 64, 1 / 8, 1 / 2, 1, 2, 8, 64]).view(7, 1, 1).expand(7, 3, 3)
    heatmap = attention_to_heatmap(relative, (6, 6))
    expected = torch.tensor([0, 0, 2 / 6, 3 / 6, 4 / 6, 1, 1])
    torch.testing.assert_close(heatmap, expected.view(7, 1, 1).expand(7, 6, 6))
    assert attention_to_heatmap(torch.zeros(1, 2, 2), (4, 4)).isfinite().all()


def test_brightness_increases_with_attention() -> None:
    luminance = apply_colour_map(np.linspace(0, 1, 101)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > 0).all()


def test_edges_of_instances_exclude_the_border_of_the_image() -> None:
    ids = np.zeros((5, 6), np.uint8)
    ids[:4, :4], ids[0, 5] = 2, IGNORE
    expected = np.zeros((5, 6), bool)
    expected[3, :4] = expected[:4, 3] = True
    assert np.array_equal(find_instance_edges(ids), expected)
    ids[:4, 2:4] = 3  # objects that touch
    expected[:4, 1:3] = True
    assert np.array_equal(find_instance_edges(ids), expected)


def test_images_without_instance_maps_are_drawn_without_captions(
    sheet: RecordedSheet, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = load_scenes(SMALL, [("tiny", backbone())])
    plain = [Scene(scene.key, {"rgb": scene.maps["rgb"]}) for scene in scenes]
    monkeypatch.setattr(attention, "load_scenes", lambda *_: plain)
    draw_attention(SMALL, [("tiny", backbone())])
    image, heat = sheet.rows[1]
    assert np.array_equal(
        image[:TILE_HEIGHT], crop_scenes(plain, (TILE_HEIGHT, TILE_HEIGHT)).maps["rgb"][1].permute(1, 2, 0).numpy()
    )
    assert (image[TILE_HEIGHT + 2 :] == 255).all()
    assert (heat[TILE_HEIGHT + 2 :] == 255).all()


def test_backbones_without_a_global_token_are_listed_in_the_footer(sheet: RecordedSheet) -> None:
    lacking = backbone(class_token=False, global_pool="avg")
    draw_attention(SMALL, [("usual", backbone()), ("lacking", lacking)])
    footer = str(sheet.texts["footer"])
    assert "No global token, so the attention is averaged over all patches: lacking." in footer


def test_images_have_the_size_of_each_backbone_unless_one_is_set(sheet: RecordedSheet) -> None:
    models = [("small", backbone()), ("large", backbone(img_size=(64, 64)))]
    draw_attention(SMALL, models)
    titles = sheet.column_titles
    assert [title.split("\n")[1][:5] for title in titles[1:3]] == ["32×32", "64×64"]
    draw_attention(BackboneFigureConfig(scenes=1, size=(48, 32)), models)
    assert sheet.rows[0][0].shape[1] == round(TILE_HEIGHT * 32 / 48)


def test_different_aspect_ratios_and_missing_layers_are_errors() -> None:
    models = [("square", backbone()), ("wide", backbone(img_size=(32, 48)))]
    with pytest.raises(UserError) as caught:
        draw_attention(SMALL, models)
    assert str(caught.value) == (
        "size: the backbones expect images of different aspect ratios, 32×32 and 32×48. "
        "Set one size for all, as in --set size=[224, 224]"
    )
    with pytest.raises(UserError) as caught:
        draw_attention(BackboneFigureConfig(layer=3), models[:1])
    assert str(caught.value) == "layer: square has 2 blocks, got 3. Set layer=2 or less"


def test_long_names_wrap_between_their_parts_and_end_with_their_last_part() -> None:
    assert wrap_path("runs/tiny") == "runs/tiny"
    long = "/a-folder-of-some-length/another-such-folder/and-a-third-of-them/and-the-last-one/file.safetensors"
    lines = wrap_path(long).split("\n")
    assert lines[0] == "…"
    assert lines[-1] == "and-the-last-one/file.safetensors"[-len(lines[-1]) :]
    assert all(len(line) <= 30 for line in lines)
