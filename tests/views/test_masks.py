from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.masking import mask_scenes
from c2fmae.report import table_to_lines
from c2fmae.views import masks as view
from c2fmae.views.config import MasksFigureConfig
from c2fmae.views.masks import MaskSample, build_quota_table, draw_masks, draw_saved_masks, save_masks
from c2fmae.views.patched_scenes import load_patched_scenes
from tests.views.sheets import RecordedSheet

CONFIG = MasksFigureConfig.model_validate({"scenes": 2, "size": 64, "patch": 8})


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


@pytest.fixture
def sheet(monkeypatch: pytest.MonkeyPatch) -> RecordedSheet:
    return RecordedSheet(monkeypatch, view)


def test_the_figure_is_deterministic_and_follows_the_settings() -> None:
    first = pixels(draw_masks(CONFIG).image)
    assert np.array_equal(first, pixels(draw_masks(CONFIG).image))
    other = pixels(draw_masks(CONFIG.override(["masking.options.object_share=0.1"])).image)
    assert first.shape == other.shape
    assert not np.array_equal(first, other)
    fewer = pixels(draw_masks(CONFIG.override(["scenes=1", "progress=[0.5]"])).image)
    assert fewer.shape[0] < first.shape[0]
    assert fewer.shape[1] < first.shape[1]


def test_the_columns_are_base_masks_and_the_policy_in_the_course_of_training(sheet: RecordedSheet) -> None:
    figure = draw_masks(CONFIG.override(["progress=[0, 1]"]))
    assert sheet.column_titles == [
        *("image", "semantic map", "instance map"),
        *("semantic-guided\nmask", "instance-guided\nmask", "random\nmask"),
        *("progressive, topk\nat 0% of training", "progressive, topk\nat 100% of training"),
    ]
    assert [sample.name for sample in figure.samples] == ["semantic-guided", "instance-guided", "random", "0%", "100%"]
    for sample in figure.samples:
        assert sample.masks.num_masked.tolist() == [[48], [48]]  # 75 % of 64
    assert np.array_equal(sheet.columns["semantic-guided\nmask"][0], sheet.columns[sheet.column_titles[6]][0])


def test_more_scenes_than_the_data_has_are_an_error() -> None:
    with pytest.raises(UserError) as caught:
        load_patched_scenes(MasksFigureConfig.model_validate({"scenes": 2000, "size": 32}))
    assert str(caught.value) == "scenes: generated has 1,024 scenes, got 2000. Set scenes=1024 or less"


def test_a_class_without_a_weight_is_an_error() -> None:
    config = CONFIG.override(["masking.options.weights=[1, 1]"])
    with pytest.raises(UserError, match="expected a weight for each class up to "):
        load_patched_scenes(config)


def test_quotas_are_listed_by_scene_and_region_with_a_column_for_each_sample() -> None:
    figure = draw_masks(CONFIG.override(["progress=[0.5]"]))
    table = build_quota_table(figure.scenes, figure.samples)
    assert table.columns == (
        "scene",
        "mask",
        "region",
        "patches",
        "semantic-guided",
        "instance-guided",
        "random",
        "50%",
    )
    rows = {(row[0], row[2]): row[3:] for row in table.rows}
    assert {scene for scene, _ in rows} == {"00000000", "00000001"}
    assert (
        {"objects", "background"}
        < {region for _, region in rows}
        < {*figure.scenes.class_names, "objects", "background"}
    )
    for scene in ("00000000", "00000001"):
        objects, background = rows[scene, "objects"], rows[scene, "background"]
        assert int(str(objects[0])) + int(str(background[0])) == 64
        for first, second in zip(objects[1:], background[1:], strict=True):
            (a, b), (c, d) = (map(float, str(cell).split(" / ")) for cell in (first, second))
            assert a + c == pytest.approx(48, abs=0.11)
            assert b + d == 48
    assert len(table_to_lines(table)) == len(table.rows) + 1


def test_a_policy_without_probabilities_has_no_requested_quota() -> None:
    class HideFirst:
        def hide(self, patches: object, num_masked: torch.Tensor, noise: object, *, progress: float) -> torch.Tensor:
            return torch.arange(64) < num_masked.unsqueeze(1)

    scenes = load_patched_scenes(CONFIG)
    generator = torch.Generator().manual_seed(0)
    masks = mask_scenes(
        HideFirst(),
        scenes.regions,
        scenes.instances,
        num_visible=16,
        progress=0,
        generator=generator,
        granularities=("rgb",),
    )
    table = build_quota_table(scenes, [MaskSample("first", HideFirst(), 0.0, masks)])
    assert all(str(row[4]).startswith("– / ") for row in table.rows)


def test_saved_masks_are_replayed(tmp_path: Path, sheet: RecordedSheet) -> None:
    config = CONFIG.override(["progress=[0.5]"])
    save_masks(config, tmp_path / "masks.safetensors")
    drawn = draw_masks(config)
    expected = sheet.columns["progressive, topk\nat 50% of training"]
    replayed = draw_saved_masks(config, tmp_path / "masks.safetensors")
    assert torch.equal(replayed.samples[0].masks.is_masked, drawn.samples[3].masks.is_masked)
    assert sheet.column_titles[3:] == ["rgb\nmask"]
    assert all(np.array_equal(a, b) for a, b in zip(sheet.columns["rgb\nmask"], expected, strict=True))
    quotas = build_quota_table(replayed.scenes, replayed.samples).rows
    assert [row[-1] for row in quotas] == [row[-1] for row in build_quota_table(drawn.scenes, drawn.samples).rows]


def test_saved_masks_of_several_granularities_cover_their_own_maps(tmp_path: Path, sheet: RecordedSheet) -> None:
    scenes = load_patched_scenes(CONFIG)
    generator = torch.Generator().manual_seed(0)
    masks = mask_scenes("random", scenes.regions, scenes.instances, num_visible=30, progress=0, generator=generator)
    masks.save(tmp_path / "masks.safetensors")
    figure = draw_saved_masks(CONFIG.override(["scenes=9"]), tmp_path / "masks.safetensors")
    assert sheet.column_titles[3:] == ["semantic\nmask", "instance\nmask", "rgb\nmask"]
    assert len(sheet.columns["image"]) == 2  # as many as there are masks
    for index, (name, title) in enumerate(
        (("semantic", "semantic map"), ("instance", "instance map"), ("rgb", "image"))
    ):
        is_masked = masks.is_masked[0, index].view(8, 8).numpy().repeat(8, axis=0).repeat(8, axis=1)
        tile, covered = sheet.columns[title][0], sheet.columns[f"{name}\nmask"][0]
        assert np.array_equal(tile[~is_masked], covered[~is_masked])
        assert not np.array_equal(tile[is_masked], covered[is_masked])
    assert {row[1] for row in build_quota_table(figure.scenes, figure.samples).rows} == {"semantic", "instance", "rgb"}


def test_masks_that_do_not_fit_the_patches_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    Masks.from_mask(torch.ones(1, 1, 49, dtype=torch.bool), ("rgb",), num_visible=0).save(path)
    with pytest.raises(UserError) as caught:
        draw_saved_masks(CONFIG, path)
    assert str(caught.value) == (
        f"{path}: has masks of 49 patches, but size=64 and patch=8 make 64. Set size and patch to those of the masks"
    )


def test_masks_of_several_points_of_training_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        save_masks(CONFIG, tmp_path / "masks.safetensors")
    assert str(caught.value) == (
        "--save-masks: expected one point of training, got 5. Choose one, as in --set progress=[0.5]"
    )
    assert not list(tmp_path.iterdir())
