import pickle
from pathlib import Path

import numpy as np
import torch

from c2fmae.data.importers import Cityscapes
from c2fmae.data.label_spaces import CITYSCAPES
from tests.data.dataset_files import assert_user_error, write_png

# The border of the image, a road, the sky, two cars, a group of cars, a caravan (left out), a bicycle.
LABELS = np.array([[1, 7, 23, 26], [26, 26, 29, 33]], np.uint8)
OBJECTS = np.array([[1, 7, 23, 26000], [26001, 26, 29000, 33000]], np.uint16)
IMAGE = np.random.default_rng(0).integers(256, size=(2, 4, 3), dtype=np.uint8)


def cityscapes(root: Path, labels: np.ndarray = LABELS, objects: np.ndarray = OBJECTS) -> Path:
    for city, key in (("bonn", "bonn_000001_000019"), ("aachen", "aachen_000000_000019")):
        write_png(root / f"leftImg8bit/val/{city}/{key}_leftImg8bit.png", IMAGE)
        write_png(root / f"gtFine/val/{city}/{key}_gtFine_labelIds.png", labels)
        write_png(root / f"gtFine/val/{city}/{key}_gtFine_instanceIds.png", objects)
    return root


def test_label_numbers_become_the_classes_of_the_benchmark(tmp_path: Path) -> None:
    scenes = Cityscapes(cityscapes(tmp_path), "val")
    scene = scenes[0]
    assert scenes.keys == ("aachen_000000_000019", "bonn_000001_000019")
    assert scene.key == scenes.keys[0]
    assert scene.maps["semantic"].tolist() == [[255, 0, 10, 13], [13, 13, 255, 18]]
    assert torch.equal(scene.maps["rgb"], torch.from_numpy(IMAGE).permute(2, 0, 1))
    assert scenes.info.classes == CITYSCAPES.classes
    assert torch.equal(pickle.loads(pickle.dumps(scenes))[1].maps["instance"], scene.maps["instance"])


def test_objects_are_numbered_and_groups_are_unlabelled(tmp_path: Path) -> None:
    instance = Cityscapes(cityscapes(tmp_path), "val")[0].maps["instance"]
    assert instance.tolist() == [[255, 0, 0, 1], [2, 255, 3, 4]]


def test_unknown_numbers_and_other_sizes_are_refused(tmp_path: Path) -> None:
    root = cityscapes(tmp_path / "a", labels=np.where(LABELS == 33, 34, LABELS).astype(np.uint8))
    assert_user_error(
        lambda: Cityscapes(root, "val")[0],
        f"{root}/gtFine/val/aachen/aachen_000000_000019_gtFine_labelIds.png: id 34 on 1 pixels is outside the 19"
        " classes of the label space. Add the class to dataset.json, or map the id to its `ignore`",
    )
    other = cityscapes(tmp_path / "b", objects=OBJECTS[:1])
    folder = f"{other}/gtFine/val/aachen/aachen_000000_000019_gtFine"
    assert_user_error(
        lambda: Cityscapes(other, "val")[0],
        f"{folder}_instanceIds.png: has 4×1 pixels, but {folder}_labelIds.png has 4×2."
        " Replace the one that is not from the official release",
    )


def test_missing_annotations_are_refused(tmp_path: Path) -> None:
    root = cityscapes(tmp_path)
    (root / "gtFine").rename(root / "aside")
    assert_user_error(
        lambda: Cityscapes(root, "val"),
        f"{root}/gtFine/val: does not exist (expected a directory). Extract gtFine_trainvaltest.zip there",
    )
