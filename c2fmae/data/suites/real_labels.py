"""ImageNet-ReaL: ImageNet's validation images, in which any of several classes is correct.

The labels are those of "Are we done with ImageNet?" (Beyer et al. 2020). timm contains them, by the number in the
official name of an image, such as ILSVRC2012_val_00000001.JPEG.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.core.scene import Scene
from c2fmae.data.digest import compute_scenes_digest
from c2fmae.data.info import DatasetInfo
from c2fmae.data.scenes import Scenes, WrappedScenes
from c2fmae.data.sources import open_scenes
from c2fmae.data.suites.folder_check import NUM_SAMPLED, check_sampled_images, format_summary
from c2fmae.data.suites.labelled import find_class_dirs
from c2fmae.data.suites.shifted_set import Cell, ShiftedSet, describe_count_difference
from c2fmae.data.suites.suite import Suite, SuiteCheckReport


class RealLabels:
    """The layout of ImageNet's validation images under their official names, in class directories or in none."""

    def open(self, suite: Suite, source: str | Path) -> ShiftedSet:
        """Open a set. Images without any correct class are excluded."""
        scenes = _open_scenes(source)
        identity = compute_scenes_digest(scenes, suite.name)
        cell = Cell(None, None, scenes, suite.num_images, identity)
        return ShiftedSet(
            name=suite.name,
            suite=suite.name,
            cells=(cell,),
            labels=scenes.info.labels,
            protocol_wnids=suite.protocol_wnids,
            is_cropped=False,
            creation_sentence=None,
            warnings=tuple(text for text in (cell.count_sentence,) if text),
            identity=identity,
            label_map=_accepted_classes(suite),
        )

    def check(self, suite: Suite, source: str | Path) -> SuiteCheckReport:
        """Compare a set with the complete one by names, the number of images and a sample of them."""
        scenes = _open_scenes(source)
        findings, num_sampled = check_sampled_images(scenes, NUM_SAMPLED, suite.image_size)
        count_finding = describe_count_difference(len(scenes), suite.num_images)
        num_classes = len({label for classes in _read_combinations()[0] for label in classes})
        return SuiteCheckReport(
            (*([count_finding] if count_finding else []), *findings),
            format_summary(suite.name, len(scenes), num_classes, num_sampled),
        )


class _RealScenes(WrappedScenes):
    """Scenes whose label is the combination of classes that are correct; None if no class is."""

    def __init__(self, source: Scenes, image_numbers: Sequence[int]) -> None:
        super().__init__(source)
        self._image_numbers = image_numbers
        combinations, _ = _read_combinations()
        names = (LabelInfo(name=" or ".join(map(str, classes))) for classes in combinations)
        self.info = DatasetInfo(granularities=("rgb",), labels=tuple(names))

    def __getitem__(self, index: int) -> Scene:
        return replace(self.source[index], label=_read_combinations()[1][self._image_numbers[index] - 1])


def _open_scenes(source: str | Path) -> _RealScenes:
    class_dirs = find_class_dirs(source)
    scenes: Scenes
    if class_dirs is None:
        scenes = open_scenes(source, granularities=("rgb",))
    else:
        tree, subdir = class_dirs
        scenes = tree.open_images(subdir)
    numbers = [_image_number(key, source) for key in scenes.keys]
    return _RealScenes(scenes, numbers)


def _image_number(key: str, source: str | Path) -> int:
    match = re.search(r"ILSVRC2012_val_(\d{8})(?:\.|$)", key)
    number = int(match.group(1)) if match else 0
    if number not in range(1, len(_read_combinations()[1]) + 1):
        raise UserError(
            f"{source}: {key!r} is not the name of a validation image (expected ILSVRC2012_val_00000001 to 00050000)."
            " Give ImageNet's validation set with its official file names, by which ImageNet-ReaL lists its labels"
        )
    return number


@cache
def _read_combinations() -> tuple[list[tuple[int, ...]], list[int | None]]:
    """Return the distinct combinations of classes, and for each image the index of its own; None without any."""
    text = (files("timm.data") / "_info" / "imagenet_real_labels.json").read_text(encoding="utf-8")
    classes_by_image = [tuple(sorted(classes)) for classes in json.loads(text)]
    combinations = sorted({*classes_by_image} - {()})
    index_by_combination = {classes: index for index, classes in enumerate(combinations)}
    return combinations, [index_by_combination.get(classes) for classes in classes_by_image]


def _accepted_classes(suite: Suite) -> tuple[tuple[LabelInfo, ...], ...]:
    assert suite.wnids is not None
    labels = [LabelInfo(name=wnid, wnid=wnid) for wnid in suite.wnids()]
    return tuple(tuple(labels[number] for number in classes) for classes in _read_combinations()[0])
