from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from c2fmae_cli import app
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from c2fmae.models.backbones import Backbone
from c2fmae.report.drawing import draw_tile_sheet
from c2fmae.views import pca
from c2fmae.views.backbone_figures import TILE_HEIGHT
from c2fmae.views.pca import (
    PcaFigureConfig,
    components_to_colours,
    compute_principal_components,
    draw_pca,
    upscale_patches,
)
from tests.eval.analysis.sampled_processes import backbone_from_vit
from tests.models.tiny_models import draw_normal, make_tiny_vit, randomise_parameters

SMALL = PcaFigureConfig(scenes=2, size=(32, 48))


def backbone(seed: int = 0) -> Backbone:
    return backbone_from_vit(randomise_parameters(make_tiny_vit(), seed, std=0.3))


class Sheet:
    """What a page would be made of, kept while it is drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[tuple[np.ndarray, ...]] = []
        self.titles: list[str] = []
        monkeypatch.setattr(pca, "draw_tile_sheet", self.keep)

    def keep(self, rows: list[tuple[np.ndarray, ...]], *, column_titles: list[str], **texts: str) -> Image.Image:
        self.rows, self.titles = rows, column_titles
        return draw_tile_sheet(rows, column_titles=column_titles, **texts)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Sheet:
    return Sheet(monkeypatch)


@given(st.integers(0, 2**32 - 1))
def test_components_are_those_of_numpys_singular_vectors_pointing_to_their_largest_number(seed: int) -> None:
    features = draw_normal(20, 5, seed=seed).double() * torch.tensor([5.0, 3, 2, 1, 0.5]) + 4
    found = compute_principal_components(features)
    centred = features.numpy() - features.numpy().mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    for place in range(3):
        direction = directions[place] * np.sign(directions[place][np.abs(directions[place]).argmax()])
        np.testing.assert_allclose(found.values[:, place].numpy(), centred @ direction, atol=1e-8)
    np.testing.assert_allclose(found.explained_variance_ratio.numpy(), singular[:3] ** 2 / (singular**2).sum())


def test_what_is_planted_comes_first_and_the_mean_is_nothing() -> None:
    strong, weak = draw_normal(50, seed=1).double(), draw_normal(50, seed=2).double()
    features = torch.zeros(50, 8, dtype=torch.float64) + 100
    features[:, 2] -= 10 * strong
    features[:, 5] += weak
    found = compute_principal_components(features)
    assert torch.corrcoef(torch.stack([found.values[:, 0], -strong]))[0, 1] > 0.99
    assert torch.corrcoef(torch.stack([found.values[:, 1], weak]))[0, 1].abs() > 0.9
    assert found.explained_variance_ratio[2] < 1e-12


def test_where_there_are_fewer_directions_the_rest_is_zero() -> None:
    found = compute_principal_components(draw_normal(9, 2))
    assert found.values.shape == (9, 3)
    assert not found.values[:, 2].any()
    assert found.explained_variance_ratio[2] == 0
    assert found.explained_variance_ratio.sum().item() == pytest.approx(1)
    same = compute_principal_components(torch.ones(4, 5))
    assert not same.values.any()
    assert not same.explained_variance_ratio.any()
    assert not components_to_colours(same.values).any()


def test_colours_run_from_the_lowest_to_the_highest_but_for_extremes() -> None:
    values = torch.arange(1001, dtype=torch.float64)[:, None] * torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    colours = components_to_colours(values)
    torch.testing.assert_close(colours[500], torch.full((3,), 0.5, dtype=torch.float64))
    assert colours[:11, 0].tolist() == [0] * 11
    assert colours[:11, 1].tolist() == [1] * 11
    values[-1] *= 1000  # one patch does not darken all others
    torch.testing.assert_close(components_to_colours(values)[:900], colours[:900], atol=1e-3, rtol=0)


def test_patches_are_rectangles_where_the_size_is_no_multiple_too() -> None:
    colours = np.arange(2 * 3 * 3).reshape(2, 3, 3) / 17
    tile = upscale_patches(colours, (7, 8))
    assert tile.shape == (7, 8, 3)
    assert np.array_equal(tile[0, 0], (255 * colours[0, 0]).round())
    assert np.array_equal(tile[6, 7], (255 * colours[1, 2]).round())
    assert len(np.unique(tile.reshape(-1, 3), axis=0)) == 6


def test_each_source_has_a_column_of_its_own_components(page: Sheet) -> None:
    models = [("first", backbone()), ("second", backbone(1)), ("first again", backbone())]
    picture = np.asarray(draw_pca(SMALL, models))
    assert [len(row) for row in page.rows] == [4, 4]
    for _, first, second, again in page.rows:
        assert first.shape == (TILE_HEIGHT, 336, 3)
        assert np.array_equal(first, again)
        assert not np.array_equal(first, second)
        assert len(np.unique(first.reshape(-1, 3), axis=0)) == 6
    assert page.titles[0] == "photo"
    assert page.titles[1].startswith("first\n32×48 px, layer 2 of 2\n")
    assert page.titles[1].endswith("% of the variance")
    assert np.array_equal(picture, np.asarray(draw_pca(SMALL, models)))


def test_colours_are_of_the_layer_and_of_all_photos_together(page: Sheet) -> None:
    model = backbone()
    draw_pca(SMALL, [("tiny", model)])
    last = [row[1] for row in page.rows]
    draw_pca(PcaFigureConfig(scenes=2, size=(32, 48), layer=1), [("tiny", model)])
    assert not np.array_equal(page.rows[0][1], last[0])
    whole = np.concatenate([tile[::112, ::112].reshape(-1, 3) for tile in last])  # a pixel of each patch
    assert (whole.max(axis=0) == 255).all()
    assert (whole.min(axis=0) == 0).all()


def test_the_command_draws_and_says_what_is_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(timm.create_model("test_vit").state_dict(), "vit.safetensors")
    source = "timm:test_vit@vit.safetensors"
    words = ["view", "pca", source, "--set", "scenes=2", "--set", "size=[64, 64]"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "wrote pca.png",
        f"next: c2fmae eval representation {source} --data generated, for the rank of these features",
    ]
    refused = CliRunner().invoke(app, [*words, "--set", "layer=0"])
    assert str(refused.exception) == "view pca: layer: input should be greater than or equal to 1, got 0"
