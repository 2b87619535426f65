from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from c2fmae_cli import app
from PIL import Image
from typer.testing import CliRunner

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import COARSE_TO_FINE
from c2fmae.core.masks import Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.data import open_scenes
from c2fmae.report.drawing import colour_classes, colour_instances, draw_tile_sheet
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

Drawn = dict[str, list[np.ndarray]]


def visible(wanted: dict[str, str], *, seed: int = 0, batch: int = 3, num_patches: int = 196) -> Masks:
    draw = torch.Generator().manual_seed(seed)
    return sample_visible_masks(wanted, COARSE_TO_FINE, batch_size=batch, num_patches=num_patches, generator=draw)


class Sheet:
    """What a page would be made of, kept while it is drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.columns: Drawn = {}
        self.texts: dict[str, object] = {}
        monkeypatch.setattr(reconstruction, "draw_tile_sheet", self.keep)

    def keep(self, rows: list[list[np.ndarray]], **texts: object) -> Image.Image:
        titles = texts["column_titles"]
        assert isinstance(titles, list)
        self.columns = dict(zip(titles, map(list, zip(*rows, strict=True)), strict=True))
        self.texts = texts
        return draw_tile_sheet(rows, **texts)  # type: ignore[arg-type]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Sheet:
    return Sheet(monkeypatch)


def magnified(tile: np.ndarray, factor: int) -> np.ndarray:
    return tile.repeat(factor, axis=0).repeat(factor, axis=1)


@pytest.mark.parametrize(
    ("amount", "count"), [("all", 196), ("none", 0), ("0", 0), ("40", 40), ("196", 196), ("25%", 49), ("12.5%", 24)]
)
def test_so_many_patches_are_visible_of_what_is_named_and_none_of_the_rest(amount: str, count: int) -> None:
    masks = visible({"instance": amount})
    assert masks.granularities == COARSE_TO_FINE
    assert (196 - masks.num_masked).tolist() == [[0, count, 0]] * 3


def test_each_image_shows_other_patches_the_same_each_time_and_more_show_the_fewer_too() -> None:
    few, many = visible({"rgb": "40"}), visible({"rgb": "50%", "semantic": "3"})
    assert len({tuple(row) for row in few.visible_idx.tolist()}) == 3
    assert torch.equal(few.is_masked, visible({"rgb": "40"}).is_masked)
    assert not torch.equal(few.is_masked, visible({"rgb": "40"}, seed=1).is_masked)
    assert not (many.is_masked & ~few.is_masked).any()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"rgb": "200"}, "--visible rgb:200: there are 196 patches of rgb"),
        ({"rgb": "101%"}, "--visible rgb:101%: there are 196 patches of rgb"),
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
def test_what_cannot_be_visible_is_refused(wanted: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        visible(wanted)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rgb"], "--visible rgb: expected a granularity and how much of it, as in rgb:all"),
        (["rgb:"], "--visible rgb:: expected a granularity and how much of it, as in rgb:all"),
        ([":40"], "--visible :40: expected a granularity and how much of it, as in rgb:all"),
        (["rgb:all", "rgb:40"], "--visible rgb:40: rgb is there twice"),
    ],
)
def test_words_that_do_not_say_what_is_visible_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_visible(words)
    assert str(caught.value) == message


def test_each_granularity_has_its_truth_what_is_seen_and_what_is_predicted(page: Sheet) -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(2)
    masks = visible({"semantic": "1", "rgb": "all"}, batch=2, num_patches=4)
    predicted = method.predict(scenes, masks)
    picture = draw_reconstruction(method, scenes, masks, model_name="runs/first, step 50", class_names=["sky", "sea"])
    assert list(page.columns) == [
        *("semantic map", "semantic map,\nwhat is seen", "semantic map,\npredicted"),
        *("instance map", "instance map,\nwhat is seen", "instance map,\npredicted"),
        *("photo", "photo,\nwhat is seen", "photo,\npredicted"),
        "classes",
    ]
    assert page.texts["row_titles"] == ["scene-0", "scene-1"]
    assert (
        page.texts["subtitle"] == "runs/first, step 50 · visible of 4 patches each: semantic 1, instance none, rgb all"
    )
    assert page.texts["footer"] == "Patches that were visible are pasted into the predictions."
    for place in range(2):
        for title, found in (("", scenes), (",\npredicted", predicted)):
            shown = {name: maps[place].numpy() for name, maps in found.maps.items()}
            assert np.array_equal(
                page.columns[f"semantic map{title}"][place], magnified(colour_classes(shown["semantic"]), 16)
            )
            assert np.array_equal(
                page.columns[f"instance map{title}"][place], magnified(colour_instances(shown["instance"]), 16)
            )
            assert np.array_equal(page.columns[f"photo{title}"][place], magnified(shown["rgb"].transpose(1, 2, 0), 4))
    assert picture.width > 10 * 128
    assert picture.height > 2 * 128


def test_nothing_that_is_hidden_shines_through(page: Sheet) -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(1)
    masks = visible({"rgb": "3"}, batch=1, num_patches=4)
    draw_reconstruction(method, scenes, masks)
    seen = page.columns["photo,\nwhat is seen"][0]
    other = {**scenes.maps, "rgb": 255 - scenes.maps["rgb"]}
    draw_reconstruction(method, SceneBatch(scenes.keys, other), masks)
    again = page.columns["photo,\nwhat is seen"][0]
    hidden = masks.is_masked[0, 2].view(2, 2).numpy().repeat(64, axis=0).repeat(64, axis=1)
    assert np.array_equal(seen[hidden], again[hidden])
    assert (seen[~hidden] != again[~hidden]).mean() > 0.9
    assert len(np.unique(page.columns["instance map,\nwhat is seen"][0].reshape(-1, 3), axis=0)) == 2  # and the edges


def test_tiles_that_are_large_enough_are_not_magnified(page: Sheet) -> None:
    method, scenes = build_tiny_method(size=(128, 160)), draw_noise_scenes(1, (128, 160))
    draw_reconstruction(method, scenes, sample_training_masks(method, scenes))
    assert {tile.shape for tiles in page.columns.values() for tile in tiles} == {(128, 160, 3)}


def test_a_second_target_has_a_column_and_says_what_it_borrows(page: Sheet) -> None:
    method = build_tiny_method("c2fmae", "targets.rgb=[pixels, normalized_pixels]")
    scenes = draw_noise_scenes(1)
    draw_reconstruction(method, scenes, sample_training_masks(method, scenes))
    assert "photo,\npredicted as normalized pixels" in page.columns
    assert page.texts["footer"] == (
        "Patches that were visible are pasted into the predictions.\n"
        "Mean and deviation of each patch borrowed from the truth: photo, predicted as normalized pixels."
    )


def test_maps_that_the_scenes_lack_are_predicted_from_what_is_there(page: Sheet) -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(2)
    photos = SceneBatch(scenes.keys, {"rgb": scenes.maps["rgb"]})
    draw_reconstruction(method, photos, sample_requested_masks(method, photos, {"rgb": "50%"}))
    alone = dict(page.columns)
    draw_reconstruction(method, scenes, sample_requested_masks(method, scenes, {"rgb": "50%"}))
    for name in ("semantic map", "instance map"):
        assert not np.array_equal(alone[name][0], page.columns[name][0])
        assert np.array_equal(alone[name][0], alone[name][1])
        for title in ("what is seen", "predicted"):
            assert np.array_equal(alone[f"{name},\n{title}"], page.columns[f"{name},\n{title}"])


def test_photos_alone_need_to_be_told_what_is_visible() -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(1)
    photos = SceneBatch(scenes.keys, {"rgb": scenes.maps["rgb"]})
    with pytest.raises(UserError) as caught:
        sample_training_masks(method, photos)
    assert str(caught.value) == (
        "the scenes lack semantic, instance: say what is visible of the others, as in --visible rgb:25%"
    )


def test_the_classes_that_occur_are_named_the_largest_first() -> None:
    ids = np.array([3, 3, 3, 0, 0, 255, 7, 3])
    palette = colour_classes(np.arange(256)[None])[0].tolist()
    assert reconstruction._class_colours(ids, ["sky", "sea", "sand", "tree"]) == {
        "tree": tuple(palette[3]),
        "sky": tuple(palette[0]),
        "class 7": tuple(palette[7]),
        "not labelled": tuple(palette[255]),
    }


def test_depth_is_grey_from_its_lowest_to_its_highest() -> None:
    depth = np.array([[2.0, 4.0], [6.0, 9.0]], np.float32)
    nearer = np.array([[2.0, 2.0], [6.0, 3.0]], np.float32)
    assert reconstruction._colour_map("depth", depth, nearer)[..., 0].tolist() == [[0, 127], [255, 255]]


def test_scenes_are_spread_over_the_source_and_fit_the_method() -> None:
    method = build_tiny_method("c2fmae", "channels.semantic=23", size=(64, 64))
    scenes = select_scenes(method, open_scenes("generated", size=64, length=10), 2)
    assert scenes.keys == ("00000002", "00000007")
    assert {name: tuple(maps.shape) for name, maps in scenes.maps.items()} == {
        "semantic": (2, 16, 16),
        "instance": (2, 16, 16),
        "rgb": (2, 3, 64, 64),
    }
    assert len(select_scenes(method, open_scenes("generated", size=64, length=3), 6)) == 3


def test_the_model_is_left_in_training_where_it_was_and_the_picture_is_the_same_each_time() -> None:
    method, scenes = build_tiny_method(), draw_noise_scenes(1)
    method.model.train()
    masks = sample_training_masks(method, scenes)
    first, second = (draw_reconstruction(method, scenes, masks).tobytes() for _ in range(2))
    assert first == second
    assert method.model.training


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A run that is in memory; what of it is asked for."""
    asked: list[object] = []
    method = build_tiny_method("c2fmae", "channels.semantic=23", "channels.instance=32")

    def load_run(path: Path, *, step: int | None = None, use_ema: bool = False) -> SimpleNamespace:
        asked.append((path, step))
        return SimpleNamespace(config=None, method=method, step=step or 7, class_names=("sky",))

    monkeypatch.setattr("c2fmae.loading.load_run", load_run)
    monkeypatch.setattr("c2fmae.loading.open_run_scenes", lambda _: open_scenes("generated", size=48, length=9))
    return asked


def command(*words: str) -> str:
    done = CliRunner().invoke(app, ["view", "reconstruct", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_the_command_draws_what_was_held_out_as_much_visible_as_in_training(
    run: list[object], page: Sheet, tmp_path: Path
) -> None:
    said = command("runs/first", "--out", str(tmp_path / "all.png"), "--set", "scenes=2")
    assert said == (
        f"wrote {tmp_path / 'all.png'}\n"
        "next: c2fmae view reconstruct runs/first --visible rgb:all, to see what a photo tells\n"
    )
    assert run == [(Path("runs/first"), None)]
    assert page.texts["row_titles"] == ["00000002", "00000006"]
    assert str(page.texts["subtitle"]).startswith("runs/first, step 7 · visible of 4 patches each: ")
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.width > 10 * 128


def test_the_command_takes_any_step_data_and_visible_set(run: list[object], page: Sheet, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "one.png")
    words = [
        "--data",
        str(tmp_path),
        "--visible",
        "rgb:50%",
        "--set",
        "step=3",
        "--out",
        str(tmp_path / "out" / "a.png"),
    ]
    command("runs/first", *words)
    assert run == [(Path("runs/first"), 3)]
    assert page.texts["row_titles"] == ["one"]
    assert page.texts["subtitle"] == (
        "runs/first, step 3 · visible of 4 patches each: semantic none, instance none, rgb 2"
    )
    command("runs/first", "--data", "generated", "--visible", "instance:1", "--out", str(tmp_path / "b.png"))
    assert len(page.columns["photo"]) == 6
