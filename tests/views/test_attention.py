from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from c2fmae_cli import app
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene
from c2fmae.eval.analysis.attention import compute_image_attention
from c2fmae.models.backbones import Backbone
from c2fmae.report.drawing import draw_tile_sheet
from c2fmae.views import attention
from c2fmae.views.attention import (
    AttentionFigureConfig,
    apply_colour_map,
    attention_to_heatmap,
    draw_attention,
    find_instance_edges,
    measure_attention,
)
from c2fmae.views.backbone_figures import TILE_HEIGHT, crop_scenes, wrap_path
from tests.eval.analysis.sampled_processes import backbone_from_vit
from tests.models.tiny_models import make_tiny_vit, randomise_parameters

SMALL = AttentionFigureConfig(scenes=2)


def backbone(seed: int = 0, **options: object) -> Backbone:
    """One that does not look everywhere alike."""
    return backbone_from_vit(randomise_parameters(make_tiny_vit(**{"img_size": (32, 32), **options}), seed, std=0.3))


class Sheet:
    """What a page would be made of, kept while it is drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[np.ndarray]] = []
        self.texts: dict[str, object] = {}
        monkeypatch.setattr(attention, "draw_tile_sheet", self.keep)

    def keep(self, rows: list[list[np.ndarray]], **texts: object) -> Image.Image:
        self.rows, self.texts = rows, texts
        return draw_tile_sheet(rows, **texts)  # type: ignore[arg-type]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Sheet:
    return Sheet(monkeypatch)


def test_a_row_for_each_photo_and_a_column_for_each_source_of_the_same_photos(page: Sheet) -> None:
    picture = draw_attention(SMALL, [("first", backbone()), ("second", backbone(1))])
    assert [len(row) for row in page.rows] == [4, 3]  # the scale is beside the first row
    assert page.texts["column_titles"] == [
        "photo",
        "first\n32×32 px, layer 2 of 2",
        "second\n32×32 px, layer 2 of 2",
        "attention,\n1: as if all patches were alike",
    ]
    _, first, second = (tile[:TILE_HEIGHT] for tile in page.rows[1])
    assert not np.array_equal(first, second)
    again = draw_attention(SMALL, [("first", backbone()), ("second", backbone(1))])
    assert np.array_equal(np.asarray(picture), np.asarray(again))
    draw_attention(SMALL, [("first", backbone())])
    assert np.array_equal(page.rows[1][1][:TILE_HEIGHT], first)  # who else is there does not matter


def test_two_backbones_of_one_weight_look_alike_whatever_their_names(page: Sheet) -> None:
    draw_attention(SMALL, [("first", backbone()), ("second", backbone())])
    for row in page.rows:
        assert np.array_equal(row[1], row[2])


def test_what_is_drawn_is_the_attention_of_the_layer_that_is_asked_for() -> None:
    model, config = backbone(), AttentionFigureConfig(scenes=3, layer=1)
    scenes = config.load_scenes([("tiny", model)])
    relative, shares, chance = measure_attention(config, "tiny", model, scenes)
    photos = crop_scenes(scenes, (32, 32)).maps["rgb"]
    expected = compute_image_attention(model, model.standardise(photos), [1])[:, 0]
    torch.testing.assert_close(relative.flatten(1), 4 * expected)
    assert relative.shape == (3, 2, 2)
    torch.testing.assert_close(relative.mean(dim=(1, 2)), torch.ones(3))
    assert (shares > 0).all()
    assert (chance > 0).all()


def test_places_on_the_scale_are_powers_of_two_around_looking_everywhere_alike() -> None:
    relative = torch.tensor([1 / 64, 1 / 8, 1 / 2, 1, 2, 8, 64]).view(7, 1, 1).expand(7, 3, 3)
    places = attention_to_heatmap(relative, (6, 6))
    expected = torch.tensor([0, 0, 2 / 6, 3 / 6, 4 / 6, 1, 1])
    torch.testing.assert_close(places, expected.view(7, 1, 1).expand(7, 6, 6))
    assert attention_to_heatmap(torch.zeros(1, 2, 2), (4, 4)).isfinite().all()


def test_a_brighter_colour_is_more_attention() -> None:
    luminance = apply_colour_map(np.linspace(0, 1, 101)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > 0).all()


def test_an_outline_is_the_edge_of_instances_within_the_image() -> None:
    ids = np.zeros((5, 6), np.uint8)
    ids[:4, :4], ids[0, 5] = 2, IGNORE
    expected = np.zeros((5, 6), bool)
    expected[3, :4] = expected[:4, 3] = True
    assert np.array_equal(find_instance_edges(ids), expected)
    ids[:4, 2:4] = 3  # objects that touch
    expected[:4, 1:3] = True
    assert np.array_equal(find_instance_edges(ids), expected)


def test_photos_without_instance_maps_are_drawn_without_numbers(page: Sheet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SMALL.load_scenes([("tiny", backbone())])
    plain = [Scene(scene.key, {"rgb": scene.maps["rgb"]}) for scene in whole]
    monkeypatch.setattr(AttentionFigureConfig, "load_scenes", lambda *_: plain)
    draw_attention(SMALL, [("tiny", backbone())])
    photo, heat = page.rows[1]
    assert np.array_equal(
        photo[:TILE_HEIGHT], crop_scenes(plain, (TILE_HEIGHT, TILE_HEIGHT)).maps["rgb"][1].permute(1, 2, 0).numpy()
    )
    assert (photo[TILE_HEIGHT + 2 :] == 255).all()
    assert (heat[TILE_HEIGHT + 2 :] == 255).all()


def test_a_backbone_without_a_global_token_is_named_below(page: Sheet) -> None:
    lacking = backbone(class_token=False, global_pool="avg")
    draw_attention(SMALL, [("usual", backbone()), ("lacking", lacking)])
    footer = str(page.texts["footer"])
    assert "Without a global token, the mean over what patches look at: lacking." in footer


def test_each_source_sees_photos_as_it_learned_from_them_unless_told(page: Sheet) -> None:
    models = [("small", backbone()), ("large", backbone(img_size=(64, 64)))]
    draw_attention(SMALL, models)
    titles = page.texts["column_titles"]
    assert isinstance(titles, list)
    assert [title.split("\n")[1][:5] for title in titles[1:3]] == ["32×32", "64×64"]
    draw_attention(AttentionFigureConfig(scenes=1, size=(48, 32)), models)
    assert page.rows[0][0].shape[1] == round(TILE_HEIGHT * 32 / 48)


def test_sources_of_other_shapes_or_depths_are_refused() -> None:
    models = [("square", backbone()), ("wide", backbone(img_size=(32, 48)))]
    with pytest.raises(UserError) as caught:
        draw_attention(SMALL, models)
    assert str(caught.value) == (
        "size: the sources learned from photos of other shapes, 32×32 and 32×48. Set one for all"
    )
    with pytest.raises(UserError) as caught:
        draw_attention(AttentionFigureConfig(layer=3), models[:1])
    assert str(caught.value) == "layer: square has 2 blocks, got 3"


def test_long_names_break_between_their_parts_and_keep_their_end() -> None:
    assert wrap_path("runs/tiny") == "runs/tiny"
    long = "/a-folder-of-some-length/another-such-folder/and-a-third-of-them/and-the-last-one/file.safetensors"
    lines = wrap_path(long).split("\n")
    assert lines[0] == "…"
    assert lines[-1] == "and-the-last-one/file.safetensors"[-len(lines[-1]) :]
    assert all(len(line) <= 30 for line in lines)


def test_the_command_draws_and_says_what_is_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(timm.create_model("test_vit").state_dict(), "vit.safetensors")
    source = "timm:test_vit@vit.safetensors"
    words = ["view", "attention", source, source, "--set", "scenes=2", "--set", "size=[64, 64]"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "wrote attention.png",
        f"next: c2fmae eval attention {source} {source} --data generated, for numbers of many photos",
    ]
    with Image.open("attention.png") as picture:
        assert picture.width > 4 * TILE_HEIGHT
    refused = CliRunner().invoke(app, [*words, "--out", "x.jpg"])
    assert str(refused.exception) == "cannot write the picture 'x.jpg': give a name that ends in .png"
    refused = CliRunner().invoke(app, [*words, "--set", "layers=3"])
    assert str(refused.exception) == "view attention: layers: no such setting. Did you mean 'layer'?"
