"""ImageNetV2, ImageNet-ReaL and ImageNet-W, which differ from the validation set in one respect each."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from timm.data.real_labels import RealLabelsImagenet
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.data.suites import ShiftedSet, check_suite, find_accepted_columns, open_shifted_set
from c2fmae.data.suites.official import imagenet_wnids
from c2fmae.data.suites.watermarked import _load_watermark
from c2fmae.data.transforms import CentralView
from tests.data.dataset_files import write_tree
from tests.data.suites.official_layouts import class_files, make_jpeg, write_as_tar

IMAGENET_LABELS = [LabelInfo(name=wnid, wnid=wnid) for wnid in imagenet_wnids()]
NO_LABELS, SEVERAL_LABELS, ONE_LABEL = 1, 2, 4
"""Numbers of validation images for which no class, several classes and one class are correct."""


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def read_real_labels() -> dict[str, list[int]]:
    """Return the labels of ImageNet-ReaL by file name, as timm reads them."""
    reader: Any = RealLabelsImagenet
    return reader([""] * 50_000).real_labels  # type: ignore[no-any-return]


def accepted_classes(opened: ShiftedSet) -> list[set[int]]:
    """Return the numbers of ImageNet's classes that are correct for each image."""
    table = find_accepted_columns(opened.accepted_classes, IMAGENET_LABELS)
    scenes = opened.cells[0].scenes
    labels = [scenes[index].label for index in range(len(scenes))]
    return [set() if label is None else set(table[label].nonzero().flatten().tolist()) for label in labels]


@pytest.mark.parametrize("write", [write_tree, lambda path, files: write_as_tar(path / "v2.tar", files)])
def test_numbered_directories_of_imagenet_v2_are_the_classes_of_the_logits(
    tmp_path: Path, write: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    numbers = ("0", "10", "2", "999")  # in the order of their names
    source = write(tmp_path, class_files("imagenetv2-matched-frequency-format-val/", numbers, 1))
    opened = open_shifted_set("v2", source)
    assert accepted_classes(opened) == [{int(number)} for number in numbers]
    assert opened.warnings == (
        "4 of 1,000 classes: the set is incomplete", "4 of 10,000 images: the set is incomplete",
    )  # fmt: skip
    findings = check_suite("imagenet-v2", source).findings
    assert findings[0].startswith("996 of 1,000 class directories missing: n01443537, ")


def test_a_copy_of_imagenet_v2_may_have_wordnet_ids_and_no_other_names(tmp_path: Path) -> None:
    renamed = write_tree(tmp_path / "renamed", class_files("", imagenet_wnids()[5:7], 1))
    assert accepted_classes(open_shifted_set("v2", renamed)) == [{5}, {6}]
    other = write_tree(tmp_path / "other", class_files("", ("1000", "7"), 1))
    with pytest.raises(UserError, match=r"1 of its 2 classes are not classes of ImageNetV2 \(for example '1000'\)"):
        open_shifted_set("v2", other)


@pytest.mark.parametrize("subdir", ["", "val/n01440764/"])
def test_images_of_imagenet_real_have_the_labels_that_timm_lists(tmp_path: Path, subdir: str) -> None:
    numbers = (ONE_LABEL, SEVERAL_LABELS, NO_LABELS, 50_000)
    order = [NO_LABELS, SEVERAL_LABELS, ONE_LABEL, 50_000]
    source = write_tree(tmp_path, {subdir + val_name(number): make_jpeg(str(number)) for number in numbers})
    opened = open_shifted_set("imagenet-real", source)
    by_name = read_real_labels()
    assert accepted_classes(opened) == [set(by_name[val_name(number)]) for number in order]
    assert [len(classes) for classes in accepted_classes(opened)][:3] == [0, 2, 1]
    assert opened.cells[0].scenes[0].label is None
    assert opened.warnings == ("4 of 50,000 images: the set is incomplete",)
    assert check_suite("real", source).findings == opened.warnings


def test_imagenet_real_has_the_published_number_of_labelled_images() -> None:
    labels = read_real_labels()
    assert sum(map(bool, labels.values())) == 46_837  # Beyer et al. 2020, section 4


def test_images_without_the_official_name_have_no_labels_in_imagenet_real(tmp_path: Path) -> None:
    source = write_tree(tmp_path, {val_name(1): make_jpeg("1"), val_name(50_001): make_jpeg("2")})
    with pytest.raises(UserError, match=re.escape("'ILSVRC2012_val_00050001' is not the name of a validation")):
        open_shifted_set("imagenet-real", source)


def test_the_watermark_is_drawn_on_the_crop_of_224_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package, which inverts the image."""
    package = ModuleType("imagenet_w")
    package.AddWatermark = lambda size: lambda image: Image.eval(image, lambda value: 255 - value) if size == 224 else 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imagenet_w", package)
    monkeypatch.setattr("c2fmae.data.suites.watermarked.version", lambda _: "1.0.0")
    _load_watermark.cache_clear()
    source = write_tree(tmp_path, class_files("", imagenet_wnids()[5:6], 2))
    clean = open_shifted_set("imagenet-val", source)
    opened = open_shifted_set("imagenet-w", source)
    _load_watermark.cache_clear()
    assert opened.is_cropped
    assert opened.identity != clean.identity
    crop = CentralView(size=(224, 224), crop=224 / 256)(clean.cells[0].scenes[1]).maps["rgb"]
    scene = opened.cells[0].scenes[1]
    assert torch.equal(scene.maps["rgb"], 255 - crop)
    assert scene.label == clean.cells[0].scenes[1].label
    assert opened.cells[0].scenes.read_image_bytes(1) is None


def test_a_missing_package_for_the_watermark_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagenet_w", None)
    _load_watermark.cache_clear()
    source = write_tree(tmp_path, class_files("", imagenet_wnids()[5:6], 1))
    with pytest.raises(UserError, match=re.escape("pip install imagenet-w")):
        open_shifted_set("w", source)


def test_the_watermark_is_that_of_the_package(tmp_path: Path) -> None:
    imagenet_w = pytest.importorskip("imagenet_w", reason="imagenet-w is not installed")
    source = write_tree(tmp_path, class_files("", imagenet_wnids()[5:6], 1))
    clean: Tensor = CentralView(size=(224, 224), crop=224 / 256)(
        open_shifted_set("imagenet-val", source).cells[0].scenes[0]
    ).maps["rgb"]
    drawn = open_shifted_set("imagenet-w", source).cells[0].scenes[0].maps["rgb"]
    assert torch.equal(drawn, tv.to_dtype(imagenet_w.AddWatermark(224)(clean / 255), torch.uint8, scale=True))
    assert 0.01 < (drawn != clean).any(dim=0).double().mean() < 0.5
