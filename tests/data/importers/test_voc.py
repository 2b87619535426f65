import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from c2fmae.data.importers import Voc
from c2fmae.data.label_spaces import VOC
from c2fmae.data.scenes import Scenes
from tests.data.dataset_files import assert_user_error, write_png

# A cat (8) and a person (15), each with a border, on the background.
CLASSES = np.array([[255, 255, 255, 0, 0], [255, 8, 255, 255, 0], [255, 255, 15, 255, 0]], np.uint8)
OBJECTS = np.array([[255, 255, 255, 0, 0], [255, 1, 255, 255, 0], [255, 255, 2, 255, 0]], np.uint8)
IMAGE = np.random.default_rng(0).integers(256, size=(3, 5, 3), dtype=np.uint8)


def write_palette(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids).convert("P")
    image.putpalette(np.random.default_rng(1).integers(256, size=768, dtype=np.uint8).tobytes())
    image.save(path)


def voc(root: Path, *keys: str, classes: np.ndarray = CLASSES, objects: np.ndarray = OBJECTS) -> Path:
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("".join(f"{key}\n" for key in keys))
    for key in keys:
        write_png(root / f"JPEGImages/{key}.jpg", IMAGE)
        write_palette(root / f"SegmentationClass/{key}.png", classes)
        write_palette(root / f"SegmentationObject/{key}.png", objects)
    return root


def test_borders_are_unlabelled_in_both_maps(tmp_path: Path) -> None:
    scenes = Voc(voc(tmp_path, "2007_000032"), "val")
    scene = scenes[0]
    assert list(scene.maps) == ["semantic", "instance", "rgb"]
    assert np.array_equal(scene.maps["semantic"], CLASSES)
    assert np.array_equal(scene.maps["instance"], OBJECTS)
    assert torch.equal(scene.maps["rgb"], torch.from_numpy(IMAGE).permute(2, 0, 1))
    assert all(ids.dtype == torch.uint8 for ids in scene.maps.values())
    assert (scene.key, scene.label, scene.label_stride) == ("2007_000032", None, 1)
    assert scenes.read_image_bytes(0) == (tmp_path / "JPEGImages/2007_000032.jpg").read_bytes()


def test_scenes_are_in_the_order_of_the_split(tmp_path: Path) -> None:
    scenes = Voc(voc(tmp_path, "2008_000002", "2007_000032"), "val")
    assert isinstance(scenes, Scenes)
    assert scenes.keys == ("2008_000002", "2007_000032")
    assert (len(scenes), scenes[1].key) == (2, "2007_000032")
    assert scenes.info.classes == VOC.classes
    assert scenes.info.granularities == ("semantic", "instance", "rgb")


def test_the_directory_around_vocdevkit_is_accepted(tmp_path: Path) -> None:
    voc(tmp_path / "VOCdevkit/VOC2012", "2007_000032")
    assert np.array_equal(Voc(tmp_path, "val")[0].maps["semantic"], CLASSES)


def test_scenes_can_be_pickled(tmp_path: Path) -> None:
    scenes = Voc(voc(tmp_path, "2007_000032"), "val")
    copy = pickle.loads(pickle.dumps(scenes))
    assert all(torch.equal(copy[0].maps[name], ids) for name, ids in scenes[0].maps.items())


def test_missing_directories_and_splits_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert_user_error(lambda: Voc(missing, "val"), f"{missing}: does not exist (expected a directory). Check the path")
    assert_user_error(
        lambda: Voc(tmp_path, "val"),
        f"{tmp_path}: contains no ImageSets/Segmentation/*.txt. Give the root directory of the official release",
    )
    root = voc(tmp_path / "VOC2012", "a")
    assert_user_error(lambda: Voc(root, "vall"), f"{root}: no split named 'vall'. Did you mean 'val'? Known: val")
    for name in ("SegmentationObject", "JPEGImages"):
        (root / name).rename(tmp_path / "aside")
        assert_user_error(
            lambda: Voc(root, "val"), f"{root}/{name}: does not exist (expected a directory). Check the path"
        )
        (tmp_path / "aside").rename(root / name)


def test_empty_lists_and_duplicate_samples_are_refused(tmp_path: Path) -> None:
    root = voc(tmp_path, "a")
    path = root / "ImageSets/Segmentation/val.txt"
    path.write_text("\n")
    assert_user_error(lambda: Voc(root, "val"), f"{path}: lists no scenes. Check that it is complete")
    path.write_text("a\nb\na\n")
    assert_user_error(lambda: Voc(root, "val"), f"{path}: lists sample 'a' 2 times. Remove all but one")
    path.write_bytes(b"\xff\xfe")
    assert_user_error(lambda: Voc(root, "val"), f"{path}: is not a text file. Restore it from the official release")


@pytest.mark.parametrize("name", ["JPEGImages/a.jpg", "SegmentationClass/a.png", "SegmentationObject/a.png"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    root = voc(tmp_path, "a")
    (root / name).unlink()
    assert_user_error(
        lambda: Voc(root, "val")[0],
        f"{root}/{name}: cannot be read: No such file or directory. Check the path, or restore the file",
    )


def test_maps_of_another_size_than_the_image_are_refused(tmp_path: Path) -> None:
    root = voc(tmp_path, "a", objects=OBJECTS[:2])
    assert_user_error(
        lambda: Voc(root, "val")[0],
        f"{root}/SegmentationObject/a.png: has 5×2 pixels, but {root}/JPEGImages/a.jpg has 5×3."
        " Replace the one that is not from the official release",
    )


def test_a_class_that_voc_does_not_have_is_refused(tmp_path: Path) -> None:
    root = voc(tmp_path, "a", classes=CLASSES + (CLASSES == 8) * np.uint8(13))
    assert_user_error(
        lambda: Voc(root, "val")[0],
        f"{root}/SegmentationClass/a.png: id 21 on 1 pixels is outside the 21 classes of the label space."
        " Add the class to dataset.json, or map the id to its `ignore`",
    )


def test_maps_in_colour_are_refused(tmp_path: Path) -> None:
    root = voc(tmp_path, "a")
    Image.open(root / "SegmentationClass/a.png").convert("RGB").save(root / "SegmentationClass/a.png")
    assert_user_error(
        lambda: Voc(root, "val")[0],
        f"{root}/SegmentationClass/a.png: is not an id map. Store it as a PNG of one channel with 8 or 16 bits",
    )
