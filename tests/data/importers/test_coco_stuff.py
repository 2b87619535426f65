import pickle
from pathlib import Path

import numpy as np
import torch

from c2fmae.data.importers import CocoStuff
from c2fmae.data.label_spaces import COCO_STUFF
from tests.data.dataset_files import assert_user_error, write_png

# Label numbers minus 1: a person, a stop sign (13), a toothbrush (90), a banner (92) and wood (182).
CLASSES = np.array([[0, 12, 89], [91, 181, 255]], np.uint8)
IMAGE = np.random.default_rng(0).integers(256, size=(2, 3, 3), dtype=np.uint8)


def coco_stuff(root: Path, *keys: str, classes: np.ndarray = CLASSES) -> Path:
    for key in keys:
        write_png(root / f"images/val2017/{key}.jpg", IMAGE)
        write_png(root / f"annotations/val2017/{key}.png", classes)
    return root


def test_numbers_of_the_files_become_consecutive_classes(tmp_path: Path) -> None:
    scenes = CocoStuff(coco_stuff(tmp_path, "000000000139"), "val2017")
    scene = scenes[0]
    assert list(scene.maps) == ["semantic", "rgb"]
    assert scene.maps["semantic"].tolist() == [[0, 11, 79], [80, 170, 255]]
    assert torch.equal(scene.maps["rgb"], torch.from_numpy(IMAGE).permute(2, 0, 1))
    assert scenes.info.classes == COCO_STUFF.classes
    assert scenes.info.granularities == ("semantic", "rgb")
    assert torch.equal(pickle.loads(pickle.dumps(scenes))[0].maps["semantic"], scene.maps["semantic"])


def test_a_number_that_no_class_has_is_refused(tmp_path: Path) -> None:
    root = coco_stuff(tmp_path, "a", classes=np.where(CLASSES == 12, 11, CLASSES).astype(np.uint8))
    assert_user_error(
        lambda: CocoStuff(root, "val2017")[0],
        f"{root}/annotations/val2017/a.png: id 11 on 1 pixels is outside the 171 classes of the label space."
        " Add the class to dataset.json, or map the id to its `ignore`",
    )


def test_missing_splits_and_maps_are_refused(tmp_path: Path) -> None:
    assert_user_error(
        lambda: CocoStuff(tmp_path, "val2017"),
        f"{tmp_path}: contains no images/train2017. Give the root directory of the official release",
    )
    root = coco_stuff(tmp_path, "a")
    (root / "annotations/val2017").rename(root / "aside")
    assert_user_error(
        lambda: CocoStuff(root, "val2017"),
        f"{root}/annotations/val2017: does not exist (expected a directory). Extract stuffthingmaps_trainval2017.zip"
        " into annotations",
    )
