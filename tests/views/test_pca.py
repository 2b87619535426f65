from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.models.backbones import Backbone
from c2fmae.recipes.config import load_recipe
from c2fmae.views import pca
from c2fmae.views.backbone_figures import TILE_HEIGHT
from c2fmae.views.config import BackboneFigureConfig
from c2fmae.views.pca import (
    components_to_colours,
    compute_principal_components,
    draw_pca,
    upscale_patches,
)
from tests.eval.analysis.sampled_processes import backbone_from_vit
from tests.models.tiny_models import draw_normal, make_tiny_vit, randomise_parameters
from tests.views.sheets import RecordedSheet

pytestmark = pytest.mark.numeric

SMALL = BackboneFigureConfig(scenes=2, size=(32, 48))


def backbone(seed: int = 0) -> Backbone:
    return backbone_from_vit(randomise_parameters(make_tiny_vit(), seed, std=0.3))


@pytest.fixture
def sheet(monkeypatch: pytest.MonkeyPatch) -> RecordedSheet:
    return RecordedSheet(monkeypatch, pca)


@given(st.integers(0, 2**32 - 1))
def test_components_equal_numpys_singular_vectors_up_to_sign(seed: int) -> None:
    features = draw_normal(20, 5, seed=seed).double() * torch.tensor([5.0, 3, 2, 1, 0.5]) + 4
    components = compute_principal_components(features)
    centred = features.numpy() - features.numpy().mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    for index in range(3):
        direction = directions[index] * np.sign(directions[index][np.abs(directions[index]).argmax()])
        np.testing.assert_allclose(components.values[:, index].numpy(), centred @ direction, atol=1e-8)
    np.testing.assert_allclose(components.explained_variance_ratio.numpy(), singular[:3] ** 2 / (singular**2).sum())


def test_planted_directions_come_first_and_the_mean_has_no_effect() -> None:
    strong, weak = draw_normal(50, seed=1).double(), draw_normal(50, seed=2).double()
    features = torch.zeros(50, 8, dtype=torch.float64) + 100
    features[:, 2] -= 10 * strong
    features[:, 5] += weak
    components = compute_principal_components(features)
    assert torch.corrcoef(torch.stack([components.values[:, 0], -strong]))[0, 1] > 0.99
    assert torch.corrcoef(torch.stack([components.values[:, 1], weak]))[0, 1].abs() > 0.9
    assert components.explained_variance_ratio[2] < 1e-12


def test_missing_components_are_zero() -> None:
    components = compute_principal_components(draw_normal(9, 2))
    assert components.values.shape == (9, 3)
    assert not components.values[:, 2].any()
    assert components.explained_variance_ratio[2] == 0
    assert components.explained_variance_ratio.sum().item() == pytest.approx(1)
    constant = compute_principal_components(torch.ones(4, 5))
    assert not constant.values.any()
    assert not constant.explained_variance_ratio.any()
    assert not components_to_colours(constant.values).any()


def test_colours_span_the_values_and_clip_extremes() -> None:
    values = torch.arange(1001, dtype=torch.float64)[:, None] * torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    colours = components_to_colours(values)
    torch.testing.assert_close(colours[500], torch.full((3,), 0.5, dtype=torch.float64))
    assert colours[:11, 0].tolist() == [0] * 11
    assert colours[:11, 1].tolist() == [1] * 11
    values[-1] *= 1000  # one patch does not darken all others
    torch.testing.assert_close(components_to_colours(values)[:900], colours[:900], atol=1e-3, rtol=0)


def test_patches_are_rectangles_for_any_tile_size() -> None:
    colours = np.arange(2 * 3 * 3).reshape(2, 3, 3) / 17
    tile = upscale_patches(colours, (7, 8))
    assert tile.shape == (7, 8, 3)
    assert np.array_equal(tile[0, 0], (255 * colours[0, 0]).round())
    assert np.array_equal(tile[6, 7], (255 * colours[1, 2]).round())
    assert len(np.unique(tile.reshape(-1, 3), axis=0)) == 6


def test_each_backbone_has_a_column_of_its_own_components(sheet: RecordedSheet) -> None:
    models = [("first", backbone()), ("second", backbone(1)), ("repeated", backbone())]
    figure = np.asarray(draw_pca(SMALL, models))
    assert [len(row) for row in sheet.rows] == [4, 4]
    for _, first, second, repeated in sheet.rows:
        assert first.shape == (TILE_HEIGHT, 336, 3)
        assert np.array_equal(first, repeated)
        assert not np.array_equal(first, second)
        assert len(np.unique(first.reshape(-1, 3), axis=0)) == 6
    assert sheet.column_titles[0] == "image"
    assert sheet.column_titles[1].startswith("first\n32×48 px, layer 2 of 2\n")
    assert sheet.column_titles[1].endswith("% of the variance")
    assert sheet.texts["footer"].endswith("\ngenerated, size 224, seed 0")
    assert np.array_equal(figure, np.asarray(draw_pca(SMALL, models)))


def test_generated_scenes_are_like_those_of_the_runs_with_another_seed(sheet: RecordedSheet, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(load_recipe("c2fmae-debug").to_yaml(), encoding="utf-8")
    draw_pca(BackboneFigureConfig(scenes=2, size=(32, 48), seed=3), [(str(tmp_path), backbone())])
    assert sheet.texts["footer"].endswith("\ngenerated, size 224, seed 1005, difficulty easy")


def test_components_are_those_of_the_layer_over_all_images(sheet: RecordedSheet) -> None:
    model = backbone()
    draw_pca(SMALL, [("tiny", model)])
    last = [row[1] for row in sheet.rows]
    draw_pca(BackboneFigureConfig(scenes=2, size=(32, 48), layer=1), [("tiny", model)])
    assert not np.array_equal(sheet.rows[0][1], last[0])
    patches = np.concatenate([tile[::112, ::112].reshape(-1, 3) for tile in last])  # a pixel of each patch
    assert (patches.max(axis=0) == 255).all()
    assert (patches.min(axis=0) == 0).all()
