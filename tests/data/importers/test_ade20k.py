import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from c2fmae.data.crops.scaled_crop import ScaledCrop
from c2fmae.data.importers import Ade20k
from c2fmae.data.instance_ids import numbers_to_instance_ids
from c2fmae.data.label_spaces import ADE20K
from c2fmae.data.pack import PackConfig, pack_scenes
from c2fmae.data.scenes import Scenes
from c2fmae.data.segmentation_batch import SegmentationBatch
from c2fmae.data.sources import open_scenes
from tests.data.dataset_files import assert_user_error, write_png

# In the file 0 is "other", 1 the wall, 8 a bed, 150 a flag; bed and flag are things.
CLASSES = np.array([[0, 1, 1, 8], [0, 150, 150, 8], [1, 150, 8, 8]], np.uint8)
# One flag is object 255; the bed at the bottom right is no object; one object has no class.
OBJECTS = np.array([[0, 0, 0, 2], [7, 255, 3, 2], [0, 255, 0, 2]], np.uint8)
KINDS = np.array([[0, 0, 0, 1], [9, 100, 100, 1], [0, 100, 0, 1]], np.uint8)
IMAGE = np.random.default_rng(0).integers(256, size=(3, 4, 3), dtype=np.uint8)


def ade20k(root: Path, *keys: str, classes: np.ndarray = CLASSES) -> Path:
    for key in keys:
        write_png(root / f"images/validation/{key}.jpg", IMAGE)
        write_png(root / f"annotations/validation/{key}.png", classes)
    return root


def add_objects(root: Path, key: str, kinds: np.ndarray = KINDS, objects: np.ndarray = OBJECTS) -> None:
    """Red is the class, green the object; blue is unused."""
    colours = np.stack([kinds, objects, np.full_like(kinds, 77)], axis=-1)
    write_png(root / f"annotations_instance/validation/{key}.png", colours)


def test_other_is_unlabelled_and_classes_start_at_0(tmp_path: Path) -> None:
    scenes = Ade20k(ade20k(tmp_path, "ADE_val_00000001"), "validation")
    scene = scenes[0]
    assert scene.maps["semantic"].tolist() == [[255, 0, 0, 7], [255, 149, 149, 7], [0, 149, 7, 7]]
    assert scene.maps["semantic"].dtype == torch.uint8
    assert torch.equal(scene.maps["rgb"], torch.from_numpy(IMAGE).permute(2, 0, 1))
    assert (scene.key, scene.label, scene.label_stride) == ("ADE_val_00000001", None, 1)
    assert scenes.read_image_bytes(0) == (tmp_path / "images/validation/ADE_val_00000001.jpg").read_bytes()


def test_classes_are_shifted_exactly_once(tmp_path: Path) -> None:
    """A second shift, in a reader, a pack or a crop, would give 255, 255 and 148."""
    values = np.array([[0, 1, 150]], np.uint8).repeat(12, 1).repeat(12, 0)
    root = ade20k(tmp_path / "ade", "a", classes=values)
    write_png(root / "images/validation/a.jpg", np.zeros((12, 36, 3), np.uint8))
    imported = Ade20k(root, "validation")
    pack_scenes(imported, tmp_path / "pack", PackConfig(label_stride=1))
    packed = open_scenes(tmp_path / "pack")
    crop = ScaledCrop(size=(12, 36), short_side=12, scale=(1, 1), flip=0, max_class_share=1)
    for scenes in (imported, packed):
        sample = crop(scenes[0], np.random.default_rng(0))
        batch = SegmentationBatch.stack([sample], (16, 40))
        assert scenes[0].maps["semantic"][0, ::12].tolist() == [255, 0, 149]
        assert batch.ids[0, 0].tolist() == [255] * 12 + [0] * 12 + [149] * 12 + [255] * 4


def test_without_instance_annotations_there_is_no_instance_map(tmp_path: Path) -> None:
    scenes = Ade20k(ade20k(tmp_path, "b", "a"), "validation")
    assert isinstance(scenes, Scenes)
    assert scenes.keys == ("a", "b")
    assert list(scenes[0].maps) == ["semantic", "rgb"]
    assert scenes.info.granularities == ("semantic", "rgb")
    assert scenes.info.classes == ADE20K.classes


def test_green_is_the_object_and_pixels_of_things_in_no_object_are_unlabelled(tmp_path: Path) -> None:
    add_objects(ade20k(tmp_path, "a"), "a")
    scenes = Ade20k(tmp_path, "validation")
    assert scenes.info.granularities == ("semantic", "instance", "rgb")
    scene = scenes[0]
    assert list(scene.maps) == ["semantic", "instance", "rgb"]
    assert scene.maps["instance"].tolist() == [[255, 0, 0, 2], [7, 65535, 3, 2], [0, 65535, 255, 2]]
    assert scene.maps["instance"].dtype == torch.int32


def test_up_to_254_objects_have_8_bits(tmp_path: Path) -> None:
    add_objects(ade20k(tmp_path, "a"), "a", objects=np.minimum(OBJECTS, 254))
    assert Ade20k(tmp_path, "validation")[0].maps["instance"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("numbers", "ids", "dtype"),
    [
        ([], [], np.uint8),
        ([0, 1, 254], [0, 1, 254], np.uint8),
        ([255, 1], [65535, 1], np.int32),
        ([256, 0], [256, 0], np.int32),
    ],
)
def test_no_object_has_the_id_of_unlabelled_pixels(numbers: list[int], ids: list[int], dtype: type) -> None:
    converted = numbers_to_instance_ids(np.array(numbers, np.int64))
    assert converted.tolist() == ids
    assert converted.dtype == dtype


def test_scenes_can_be_pickled(tmp_path: Path) -> None:
    add_objects(ade20k(tmp_path, "a"), "a")
    scenes = Ade20k(tmp_path, "validation")
    copy = pickle.loads(pickle.dumps(scenes))
    assert all(torch.equal(copy[0].maps[name], ids) for name, ids in scenes[0].maps.items())


def test_missing_directories_and_splits_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert_user_error(
        lambda: Ade20k(missing, "training"), f"{missing}: does not exist (expected a directory). Check the path"
    )
    assert_user_error(
        lambda: Ade20k(tmp_path, "training"),
        f"{tmp_path}: contains no images/training. Give the root directory of the official release",
    )
    for split in ("training", "validation"):
        (tmp_path / "images" / split).mkdir(parents=True)
    assert_user_error(
        lambda: Ade20k(tmp_path, "train"),
        f"{tmp_path}: no split named 'train'. Did you mean 'training'? Known: training, validation",
    )
    assert_user_error(
        lambda: Ade20k(tmp_path, "training"),
        f"{tmp_path}/annotations/training: does not exist (expected a directory). Extract ADEChallengeData2016.zip "
        "again",
    )
    (tmp_path / "annotations/training").mkdir(parents=True)
    assert_user_error(
        lambda: Ade20k(tmp_path, "training"), f"{tmp_path}/images/training: lists no scenes. Check that it is complete"
    )


def test_a_missing_map_is_named(tmp_path: Path) -> None:
    add_objects(ade20k(tmp_path, "a"), "a")
    for name in ("annotations_instance/validation/a.png", "annotations/validation/a.png"):
        (tmp_path / name).unlink()
        assert_user_error(
            lambda name=name: Ade20k(tmp_path, "validation")[0],  # type: ignore[misc]
            f"{tmp_path}/{name}: cannot be read: No such file or directory. Check the path, or restore the file",
        )


def test_a_class_that_ade20k_does_not_have_is_refused(tmp_path: Path) -> None:
    root = ade20k(tmp_path, "a", classes=np.where(CLASSES == 150, 151, CLASSES).astype(np.uint8))
    assert_user_error(
        lambda: Ade20k(root, "validation")[0],
        f"{root}/annotations/validation/a.png: id 151 on 3 pixels is outside the 150 classes of the label space."
        " Add the class to dataset.json, or map the id to its `ignore`",
    )


def test_maps_of_another_size_are_refused(tmp_path: Path) -> None:
    root = ade20k(tmp_path, "a", classes=CLASSES[:2])
    classes = f"{root}/annotations/validation/a.png"
    fix = "Replace the one that is not from the official release"
    assert_user_error(
        lambda: Ade20k(root, "validation")[0],
        f"{classes}: has 4×2 pixels, but {root}/images/validation/a.jpg has 4×3. {fix}",
    )
    add_objects(root, "a")
    assert_user_error(
        lambda: Ade20k(root, "validation")[0],
        f"{root}/annotations_instance/validation/a.png: has 4×3 pixels, but {classes} has 4×2. {fix}",
    )


def test_instance_annotations_of_another_release_are_refused(tmp_path: Path) -> None:
    add_objects(ade20k(tmp_path, "a"), "a", kinds=np.where(KINDS == 100, 101, KINDS).astype(np.uint8))
    assert_user_error(
        lambda: Ade20k(tmp_path, "validation")[0],
        f"{tmp_path}/annotations_instance/validation/a.png: has class 101 in red (expected at most 100). Use the"
        " files of the instance challenge",
    )
