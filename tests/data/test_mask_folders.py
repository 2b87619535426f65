"""Folders of images and masks, as users have them: ids, palettes and colours, described by dataset.json."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c2fmae_cli.data import data as data_commands
from PIL import Image
from typer.testing import CliRunner

from c2fmae.core.granularity import IGNORE
from c2fmae.data.check import check_dataset, describe_missing_classes
from c2fmae.data.dataset_scenes import DatasetScenes
from c2fmae.data.info import DatasetInfo
from c2fmae.data.pack import PackConfig, pack_scenes
from c2fmae.data.sources import inspect_scenes, open_scenes
from tests.data.dataset_files import assert_user_error

ROAD, CAR, VOID = (128, 64, 128), (0, 0, 142), (0, 0, 0)
IDS = np.array([[0, 1, 1, 2], [2, 2, IGNORE, 0]], np.uint8)
CLASSES = [{"name": "road"}, {"name": "car"}, {"name": "sky"}]


def write_set(root: Path, masks: dict[str, np.ndarray], info: dict[str, Any] | None = None) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for key, mask in masks.items():
        image = np.random.default_rng(len(key)).integers(256, size=(*mask.shape[:2], 3), dtype=np.uint8)
        Image.fromarray(image).save(root / f"images/{key}.jpg")
        Image.fromarray(mask).save(root / f"masks/{key}.png")
    if info is not None:
        (root / "dataset.json").write_text(json.dumps(info))
    return root


def read_ids(root: Path) -> list[list[int]]:
    ids: list[list[int]] = open_scenes(root)[0].maps["semantic"].tolist()
    return ids


def colour_mask(*rows: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(rows, np.uint8)


def test_images_and_masks_of_the_same_stems_are_scenes(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"b": IDS, "a.1": IDS}, {"classes": CLASSES})
    scenes = open_scenes(root)
    assert list(scenes.keys) == ["a.1", "b"]
    assert scenes.info.granularities == ("semantic", "rgb")
    assert scenes[1].maps["rgb"].shape == (3, 2, 4)
    assert scenes[1].maps["semantic"].tolist() == IDS.tolist()
    assert scenes[1].label is None


def test_sets_share_the_description_of_the_folder_around_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        write_set(tmp_path / split, {"a": IDS + np.uint8(10) * (IDS != IGNORE)})
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": CLASSES, "offset": 10}))
    assert read_ids(tmp_path / "train") == read_ids(tmp_path / "val") == IDS.tolist()
    assert open_scenes(tmp_path / "val").info.class_names == ("road", "car", "sky")
    monkeypatch.chdir(tmp_path / "train")
    assert read_ids(Path()) == IDS.tolist()
    (tmp_path / "val/dataset.json").write_text(json.dumps({"classes": [{"name": "other"}] * 13}))
    assert open_scenes(tmp_path / "val").info.classes[0].name == "other"


def test_sets_inside_of_images_and_masks_are_refused(tmp_path: Path) -> None:
    for name in ("images/train", "images/val", "masks/train", "masks/val"):
        (tmp_path / name).mkdir(parents=True)
    assert_user_error(
        lambda: open_scenes(tmp_path),
        f"{tmp_path}: its directories images and masks contain several sets: train, val. Move them to train/images,"
        " train/masks and so on",
    )


def test_a_tree_of_granularities_is_read_as_before(tmp_path: Path) -> None:
    write_set(tmp_path, {"a": IDS})
    for name in ("rgb", "semantic"):
        (tmp_path / name).mkdir()
    Image.fromarray(IDS).convert("RGB").save(tmp_path / "rgb/z.jpg")
    Image.fromarray(IDS).save(tmp_path / "semantic/z.png")
    assert list(open_scenes(tmp_path).keys) == ["z"]


@pytest.mark.parametrize(
    ("info", "stored"),
    [
        ({}, [0, 1, 2, 255]),
        ({"offset": 1, "ignore": 0}, [1, 2, 3, 0]),
        ({"offset": 100, "ignore": 7}, [100, 101, 102, 7]),
        ({"offset": 1}, [1, 2, 3, 255]),
    ],
)
@pytest.mark.parametrize("has_palette", [False, True])
def test_ids_of_the_files_are_those_that_dataset_json_describes(
    tmp_path: Path, info: dict[str, Any], stored: list[int], has_palette: bool
) -> None:
    values = np.zeros(256, np.uint8)
    values[[0, 1, 2, IGNORE]] = stored
    root = write_set(tmp_path, {"a": values[IDS]}, {"classes": CLASSES, **info})
    if has_palette:
        image = Image.fromarray(values[IDS]).convert("P")
        image.putpalette(np.random.default_rng(1).integers(256, size=768, dtype=np.uint8).tobytes())
        image.save(root / "masks/a.png")
    assert read_ids(root) == IDS.tolist()


def test_ids_of_16_bits_have_an_offset_too(tmp_path: Path) -> None:
    values = np.where(IDS == IGNORE, 65535, IDS.astype(int) + 1000).astype(np.uint16)
    root = write_set(tmp_path, {"a": values}, {"classes": CLASSES, "offset": 1000})
    assert read_ids(root) == IDS.tolist()


def test_colours_become_classes(tmp_path: Path) -> None:
    mask = colour_mask([ROAD, CAR, VOID], [(9, 9, 9), ROAD, (255, 255, 255)])
    info = {"classes": CLASSES, "colours": [ROAD, CAR, 9], "ignore": VOID}
    root = write_set(tmp_path, {"a": mask}, info)
    assert_user_error(
        lambda: read_ids(root),
        f"{root}/masks/a.png: colour [255, 255, 255] on 1 pixels is not one of the 3 `colours` of dataset.json."
        " Add it there, or give it as `ignore`",
    )
    write_set(root, {"a": mask[:, :2]})
    assert read_ids(root) == [[0, 1], [2, 0]]
    write_set(root, {"a": mask[:1]})
    assert read_ids(root) == [[0, 1, IGNORE]]


def test_white_is_unlabelled_by_default_unless_it_is_a_class(tmp_path: Path) -> None:
    mask = colour_mask([ROAD, (255, 255, 255)])
    info = {"classes": CLASSES[:2], "colours": [ROAD, CAR]}
    assert read_ids(write_set(tmp_path, {"a": mask}, info)) == [[0, IGNORE]]
    info["colours"] = [ROAD, 255]
    assert read_ids(write_set(tmp_path, {"a": mask}, info)) == [[0, 1]]


def test_colours_of_a_palette_are_read(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"a": IDS[:1]}, {"classes": CLASSES, "colours": [CAR, ROAD, VOID]})
    image = Image.fromarray(IDS[:1]).convert("P")
    image.putpalette([*ROAD, *CAR, *VOID])
    image.save(root / "masks/a.png")
    assert read_ids(root) == [[1, 0, 0, 2]]


def test_black_and_white_masks_have_two_classes(tmp_path: Path) -> None:
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    root = write_set(tmp_path, {"a": mask}, {"classes": CLASSES[:2], "colours": [0, 255]})
    assert read_ids(root) == [[0, 1], [1, 0]]
    Image.fromarray(mask).convert("1").save(root / "masks/a.png")  # one bit
    assert read_ids(root) == [[0, 1], [1, 0]]
    (root / "dataset.json").write_text(json.dumps({"classes": CLASSES[:2]}))
    assert_user_error(
        lambda: read_ids(root),
        f'{root}/masks/a.png: is black and white. Add "colours": [0, 255] to dataset.json, and two classes',
    )


def test_colours_of_masks_of_16_bits_are_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"a": np.array([[0, 1, 2]], np.uint16)}, {"classes": CLASSES, "colours": [0, 1, 2]})
    assert_user_error(
        lambda: read_ids(root),
        f"{root}/masks/a.png: has 16 bits, but `colours` are bytes. Store it as a PNG of 8 bits, or remove `colours` "
        "from dataset.json if its values are ids",
    )


def test_a_pack_of_masks_holds_ids(tmp_path: Path) -> None:
    mask = colour_mask([ROAD, CAR, VOID])
    root = write_set(tmp_path / "own", {"a": mask}, {"classes": CLASSES[:2], "colours": [ROAD, CAR], "ignore": VOID})
    pack_scenes(open_scenes(root), tmp_path / "pack", PackConfig(label_stride=1))
    assert read_ids(tmp_path / "pack") == [[0, 1, IGNORE]]
    description = json.loads((tmp_path / "pack/dataset.json").read_text())
    assert (description["ignore"], "colours" in description, "offset" in description) == (IGNORE, False, False)


def test_a_mask_in_colour_needs_colours(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"a": colour_mask([ROAD, CAR])})
    assert_user_error(
        lambda: read_ids(root),
        f"{root}/masks/a.png: is a colour image. List the `colours` of its classes in dataset.json, or store it as a"
        " PNG of one channel with their ids",
    )


def test_a_mask_in_jpeg_is_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"a": colour_mask([ROAD, CAR])}, {"classes": CLASSES[:2], "colours": [ROAD, CAR]})
    Image.open(root / "masks/a.png").save(root / "masks/a.jpg")
    (root / "masks/a.png").unlink()
    assert_user_error(
        lambda: read_ids(root),
        f"{root}/masks/a.jpg: is not a PNG. Store maps as PNG: JPEG changes the colours of their pixels",
    )


def test_masks_in_a_directory_of_another_name_are_asked_for(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"a": IDS}, {"classes": CLASSES})
    (root / "masks").rename(root / "labels")
    assert_user_error(
        lambda: open_scenes(root, granularities=("semantic", "rgb")),
        f"{root}: has a directory images, but none named masks (expected the semantic maps there). Rename or add it",
    )


def test_missing_masks_other_sizes_and_unknown_ids_are_problems(tmp_path: Path) -> None:
    names = ("good", "lost", "small", "other")
    root = write_set(tmp_path, dict.fromkeys(names, IDS), {"classes": CLASSES})
    (root / "masks/lost.png").unlink()
    Image.fromarray(IDS[:1]).save(root / "masks/small.png")
    Image.fromarray(np.where(IDS == 2, 3, IDS).astype(np.uint8)).save(root / "masks/other.png")
    report = check_dataset(*inspect_scenes(root))
    assert [problem.text for problem in report.problems] == [
        f"{root}: sample 'lost' has no masks/lost. Add it, or remove the sample",
        f"{root}/masks/other.png: id 3 on 3 pixels is outside the 3 classes of the label space. Add the class to"
        " dataset.json, or map the id to its `ignore`",
        f"{root}/masks/small.png: has 4×1 cells (expected 4×2 for an image of 4×2 pixels). Store both at one size",
    ]
    assert report.valid_keys == ("good",)


def test_images_without_a_labelled_pixel_are_counted(tmp_path: Path) -> None:
    masks = {"a": IDS, "bb": np.full_like(IDS, IGNORE), "c": np.full((3, 5), IGNORE, np.uint8)}
    report = check_dataset(*inspect_scenes(write_set(tmp_path, masks, {"classes": CLASSES})))
    assert (report.num_unlabelled, report.problems) == (2, ())


@pytest.mark.parametrize(
    ("mask", "description"),
    [
        (
            [0, 2, 255],
            "dataset.json names no classes, which a segmenter needs; the maps hold ids up to 2. Write it with their"
            ' names: {"classes": [{"name": "class 0"}, {"name": "class 1"}, {"name": "class 2"}]}',
        ),
        (
            [0, 255, 255],
            'the maps hold 0 and 255 alone, which is "not labelled". If 255 is a class, write dataset.json: {"classes":'
            ' [{"name": "background"}, {"name": "object"}], "colours": [0, 255]}',
        ),
    ],
)
def test_a_folder_without_class_names_gets_a_description_to_write(
    tmp_path: Path, mask: list[int], description: str
) -> None:
    root = write_set(tmp_path, {"a": np.array([mask], np.uint8)})
    assert describe_missing_classes(check_dataset(*inspect_scenes(root))) == description
    (root / "dataset.json").write_text(description[description.index("{") :])
    report = check_dataset(*inspect_scenes(root))
    assert report.problems == ()
    assert describe_missing_classes(report) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"classes": CLASSES, "colours": [ROAD]},
            "colours: expected one for each of the 3 classes, got 1. Name each class in `classes`",
        ),
        (
            {"classes": CLASSES[:2], "colours": [ROAD, ROAD]},
            "colours: [128, 64, 128] is the colour of 2 classes. Give each its own",
        ),
        (
            {"classes": CLASSES[:1], "colours": [ROAD], "offset": 1},
            "offset: has no meaning with `colours`. Remove it",
        ),
        ({"ignore": VOID}, "ignore: [0, 0, 0] is a colour, but there are no `colours`. Give an id"),
        (
            {"classes": CLASSES[:1], "colours": [[1, 2]]},
            "colours.0: expected [red, green, blue] or one number, from 0 to 255, got [1, 2]",
        ),
        (
            {"classes": CLASSES[:1], "colours": [300]},
            "colours.0: expected [red, green, blue] or one number, from 0 to 255, got 300",
        ),
        ({"ignore": 256}, "ignore: expected an id from 0 to 255, or with `colours` a colour, got 256"),
        ({"ignore": "0"}, "ignore: expected an id from 0 to 255, or with `colours` a colour, got '0'"),
        ({"colors": [ROAD]}, "colors: no such setting. Did you mean 'colours'?"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(values: dict[str, Any], message: str) -> None:
    assert_user_error(lambda: DatasetInfo.from_dict(values, source="d"), f"d: {message}")


def test_defaults_of_new_keys_are_not_written() -> None:
    assert not {"offset", "colours", "value_range"} & json.loads(DatasetInfo().to_json()).keys()


def test_ids_of_a_data_set_of_torch_are_checked() -> None:
    items = [{"image": np.zeros((2, 4, 3), np.uint8), "semantic": IDS.astype(np.int64)}] * 2
    assert DatasetScenes(items, info=DatasetInfo.from_dict({"classes": CLASSES}))[1].maps["semantic"].max() == IGNORE
    scenes = DatasetScenes(items, info=DatasetInfo.from_dict({"classes": CLASSES[:2]}))
    assert_user_error(
        lambda: scenes[1],
        "sample '00000001': semantic: id 2 at row 0, column 3 is outside the 2 classes. Use ids from 0, and 255 for"
        " unlabelled pixels",
    )


def documented_commands() -> list[str]:
    """The commands of the data section of docs/segmentation.md."""
    page = (Path(__file__).parents[2] / "docs/segmentation.md").read_text()
    section = page[page.index("## Data") : page.index("## Models")]
    return [line.strip() for line in section.splitlines() if line.startswith("    c2fmae data ")]


def run_data_command(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    assert words[:2] == ["c2fmae", "data"]
    done = CliRunner().invoke(data_commands, words[2:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_documented_commands_run_on_a_folder_of_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mask = np.kron(np.array([[ROAD, CAR]], np.uint8), np.ones((8, 4, 1), np.uint8))
    for split in ("train", "val"):
        void = np.full_like(mask, 0)
        write_set(tmp_path / "street" / split, {f"{split}-a": mask, f"{split}-bb": void})
    description = {"classes": CLASSES[:2], "colours": [ROAD, CAR], "ignore": VOID}
    (tmp_path / "street/dataset.json").write_text(json.dumps(description))
    check, preview, stats, pack = documented_commands()
    lines = run_data_command(check)
    assert [line for line in lines if line.startswith(("train:", "val:", "note:", "0 problems"))] == [
        "train: street/train",
        "note: 1 image has no labelled pixel, which adds nothing to a training on the maps",
        "0 problems, 2 valid samples",
        "val: street/val",
        "note: 1 image has no labelled pixel, which adds nothing to a training on the maps",
        "0 problems, 2 valid samples",
    ]
    assert [line.split() for line in lines[1:4]] == [
        ["id", "class", "pixels", "images"],
        ["0", "road", "25.00%", "1"],
        ["1", "car", "25.00%", "1"],
    ]
    assert "wrote preview.png" in run_data_command(preview)
    assert "wrote stats.png" in run_data_command(stats)
    run_data_command(pack)
    packed, own = open_scenes("packs/street/train"), open_scenes("street/train")
    assert packed[0].maps["semantic"].equal(own[0].maps["semantic"])
    (tmp_path / "street/dataset.json").write_text("{}")
    for split in ("train", "val"):
        Image.fromarray(IDS.repeat(4, 0).repeat(2, 1)).save(f"street/{split}/masks/{split}-a.png")
        Image.fromarray(IDS.repeat(4, 0).repeat(2, 1)).save(f"street/{split}/masks/{split}-bb.png")
    assert any("dataset.json names no classes" in line for line in run_data_command(check))
