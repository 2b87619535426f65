"""Checks of small sets in the official layouts, each with a planted fault."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from c2fmae.data.corruption.names import CORRUPTIONS
from c2fmae.data.suites import SUITES, check_suite
from c2fmae.data.suites.folder_check import classify_files
from tests.data.dataset_files import assert_user_error, write_tree
from tests.data.suites.official_layouts import (
    IN_BOTH,
    ONLY_IN_A,
    ONLY_IN_R,
    class_files,
    grid_files,
    make_jpeg,
    write_as_folder,
    write_as_shard,
    write_as_tar,
)

Make = Callable[[Path, dict[str, bytes]], Path]
VAL = ("n01440764", "n01443537", "n02119789")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official suites, but with three classes and two images of each."""
    classes = dict.fromkeys(("imagenet-val", "sketch", "imagenet-c"), VAL)
    classes |= {"imagenet-a": (ONLY_IN_A, *IN_BOTH), "imagenet-r": (*IN_BOTH, ONLY_IN_R)}
    for name, wnids in classes.items():
        suite = SUITES.get(name)
        per_class = suite.images_per_class and 2
        changed = replace(suite, wnids=partial(tuple[str, ...], wnids), num_images=6, images_per_class=per_class)
        monkeypatch.setitem(SUITES._entries, name, changed)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("make", [write_as_folder, write_as_tar])
@pytest.mark.parametrize(
    ("kind", "wnids"),
    [
        ("imagenet-a", (ONLY_IN_A, *IN_BOTH)),
        ("imagenet-r", (*IN_BOTH, ONLY_IN_R)),
        ("imagenet-val", VAL),
        ("sketch", VAL),
    ],
)
def test_a_complete_set_has_no_findings(tmp_path: Path, make: Make, kind: str, wnids: tuple[str, ...]) -> None:
    files = class_files(f"{kind}/", wnids, name="0.1_a b_0.{i}.jpg") | {f"{kind}/README.txt": b""}
    checked = check_suite(kind, make(tmp_path / "set.tar", files))
    assert checked.findings == ()
    assert checked.summary == f"{kind}: 6 images of 3 classes, 6 of them decoded"


@pytest.mark.usefixtures("small")
def test_a_complete_corruption_set_has_no_findings(tmp_path: Path) -> None:
    write_as_tar(tmp_path / "weather.tar", grid_files(CORRUPTIONS[7:], VAL, per_class=2))
    checked = check_suite("c", write_as_folder(tmp_path, grid_files(CORRUPTIONS[:7], VAL, per_class=2)))
    assert checked.findings == ()
    assert checked.summary == "imagenet-c: 75 cells: 450 images of 3 classes, 450 of them decoded"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("make", [write_as_folder, write_as_tar])
def test_each_fault_of_a_set_is_reported(tmp_path: Path, make: Make) -> None:
    files = class_files("val/", VAL[:2])
    files |= {
        f"val/{VAL[0]}/2.JPEG": b"no image",
        f"val/{VAL[0]}/notes.txt": b"",
        f"val/{VAL[1]}/more/3.JPEG": make_jpeg("nested"),
        f"val/{VAL[1]}/._0.JPEG": b"",
        "val/.DS_Store": b"",
        "val/stray.png": make_jpeg("stray"),
        "val/cat/0.JPEG": make_jpeg("cat"),
    }
    root = make(tmp_path / "val.tar", files)
    at = f"{root}/val/{VAL[0]}/2.JPEG" if root.is_dir() else f"{root}: val/{VAL[0]}/2.JPEG"
    assert check_suite("val", root).findings == (
        "1 of its 3 classes are not classes of the ImageNet validation set (for example 'cat'). Name class directories"
        " by WordNet id (n01440764), or give the set as a custom one",
        f"1 of 3 class directories missing: {VAL[2]}",
        f"2 classes with a number of images other than 2: cat (1), {VAL[0]} (3)",
        f"1 directory inside class directories: {VAL[1]}/more",
        "1 image in no class directory: stray.png",
        f"1 file that is not an image: {VAL[0]}/notes.txt",
        f"2 files added by macOS, ignored: .DS_Store, {VAL[1]}/._0.JPEG",
        f"1 of 8 sampled images cannot be decoded. {at}: cannot be decoded (its format is unsupported)."
        " Replace it, or remove the sample",
    )


@pytest.mark.usefixtures("small")
def test_wrong_counts_and_empty_class_directories_are_reported(tmp_path: Path) -> None:
    root = write_as_folder(tmp_path, class_files("", VAL[:2]))
    (root / VAL[2]).mkdir()
    assert check_suite("sketch", root).findings == (
        f"1 class directory without images: {VAL[2]}",
        "4 of 6 images: the set is incomplete",
    )


def test_a_set_given_as_another_suite_is_recognised_by_its_classes(tmp_path: Path) -> None:
    findings = check_suite("r", write_as_folder(tmp_path, class_files("", (ONLY_IN_A, *IN_BOTH)))).findings
    assert findings[0] == (
        f"1 of its 3 classes are not classes of ImageNet-R (for example '{ONLY_IN_A}'); all of them are classes of"
        " ImageNet-A. Check that the set is given as the right suite"
    )
    assert (
        findings[1] == "198 of 200 class directories missing: n01443537, n01484850, n01494475, n01498041, n01514859, …"
    )
    assert findings[2:] == ("6 of 30,000 images: the set is incomplete",)


@pytest.mark.usefixtures("small")
def test_faults_of_a_corruption_set_are_reported_with_their_cells(tmp_path: Path) -> None:
    files = grid_files(CORRUPTIONS[1:], VAL, per_class=2)
    files |= {f"fog/3/{VAL[0]}/0.JPEG": make_jpeg("large", (256, 224)), f"fog/4/{VAL[0]}/0.JPEG": b"broken"}
    files = {path: data for path, data in files.items() if not path.startswith(("snow/2", f"snow/1/{VAL[1]}"))}
    root = write_as_folder(tmp_path, files | {"fog/readme/x.txt": b""})
    assert check_suite("imagenet-c", root).findings == (
        f"1 of the 15 corruptions missing: {CORRUPTIONS[0]}",
        "snow: severity 2 missing",
        f"{root}/fog/readme: not a severity (expected 1 to 5)",
        f"snow/1: 1 of 3 class directories missing: {VAL[1]}",
        "snow/1: 4 of 6 images: the set is incomplete",
        f"fog/3: 1 of 6 sampled images are not 224×224: {VAL[0]}/0 (256×224)",
        f"fog/4: 1 of 6 sampled images cannot be decoded. {root}/fog/4/{VAL[0]}/0.JPEG: cannot be decoded"
        " (its format is unsupported). Replace it, or remove the sample",
    )


@pytest.mark.usefixtures("small")
def test_a_fault_of_many_cells_is_reported_once(tmp_path: Path) -> None:
    files = grid_files(CORRUPTIONS, VAL[:2], per_class=2)
    lacking = (f"1 of 3 class directories missing: {VAL[2]}", "4 of 6 images: the set is incomplete")
    assert check_suite("c", write_as_folder(tmp_path / "a", files)).findings == tuple(
        f"every cell: {text}" for text in lacking
    )
    files |= grid_files(["fog"], VAL[2:], per_class=2)
    assert check_suite("c", write_as_folder(tmp_path / "b", files)).findings == tuple(
        f"gaussian_noise/1 and 69 more cells: {text}" for text in lacking
    )


@pytest.mark.usefixtures("small")
def test_counts_of_one_are_reported_in_the_singular(tmp_path: Path) -> None:
    files = {f"val/{VAL[0]}/0.JPEG": make_jpeg("a"), "val/.DS_Store": b""}
    checked = check_suite("val", write_as_folder(tmp_path / "val", files))
    assert checked.summary == "imagenet-val: 1 image of 1 class, 1 of them decoded"
    assert checked.findings[1] == f"1 class with a number of images other than 2: {VAL[0]} (1)"
    assert checked.findings[-1] == "1 file added by macOS, ignored: .DS_Store"
    grid = grid_files(["fog"], VAL[:1], severities=[1])
    summary = check_suite("c", write_as_folder(tmp_path / "one", grid)).summary
    assert summary == "imagenet-c: 1 cell: 1 image of 1 class, 1 of them decoded"
    grid = grid_files(["fog"], VAL[:1], severities=[1, 2]) | grid_files(["fog"], VAL, severities=[3], per_class=2)
    findings = check_suite("c", write_as_folder(tmp_path / "two", grid)).findings
    assert f"fog/1 and 1 more cell: 2 of 3 class directories missing: {VAL[1]}, {VAL[2]}" in findings


@pytest.mark.usefixtures("small")
def test_a_corruption_set_with_a_creation_record_is_checked_at_its_own_size(tmp_path: Path) -> None:
    record = {"made_by": "c2fmae 1", "tool": "t 2", "source": "pets", "size": [32, 40], "quality": 85}
    files = {path: make_jpeg(path) for path in grid_files(CORRUPTIONS, VAL, per_class=2)}
    about = json.dumps({"corrupted": record | {"unfinished": ["fog/5"]}}).encode()
    assert check_suite("c", write_as_folder(tmp_path, files | {"dataset.json": about})).findings == (
        "created by c2fmae 1 with t 2 from pets at 40×32, JPEG quality 85; not the released ImageNet-C",
        "unfinished cells: fog/5",
    )


@pytest.mark.usefixtures("small")
def test_shards_are_checked_by_their_labels(tmp_path: Path) -> None:
    labels = [{"name": wnid} for wnid in VAL]
    whole = [(f"{label}-{i}", make_jpeg(f"{label}-{i}"), label) for label in range(3) for i in range(2)]
    for name, images in (("whole", whole), ("part", whole[:3])):
        write_as_shard(tmp_path / name / "val.tar", images)
        write_tree(tmp_path / name, {"dataset.json": json.dumps({"labels": labels}).encode()})
    assert check_suite("imagenet-val", tmp_path / "whole").findings == ()
    assert check_suite("imagenet-val", tmp_path / "part").findings == (
        "2 of 3 classes: the set is incomplete",
        "3 of 6 images: the set is incomplete",
        "1 class with a number of images other than 2",
    )


def test_a_source_without_any_layout_is_refused(tmp_path: Path) -> None:
    flat = write_as_folder(tmp_path / "flat", {"a.jpg": make_jpeg("a")})
    assert_user_error(
        lambda: check_suite("a", flat),
        f"{flat}: no class directories (expected CLASS/NAME.jpg)."
        " Move the images of each class into a directory of its own",
    )
    assert_user_error(
        lambda: check_suite("c", flat),
        f"{flat}: not the layout of ImageNet-C (expected CORRUPTION/SEVERITY/CLASS/NAME.JPEG, or tars of it)."
        " Give the directory that holds the corruptions",
    )


def test_files_are_sorted_by_what_they_are() -> None:
    hidden = ["c/.x.png", ".g/h.png", "c/.d/e.png"]
    found = classify_files(["README", "a.JPG", "c/b.jpeg", "c/b.gif", "c/d/e.png", "__MACOSX/c/b.png", *hidden])
    assert (found.images, found.unclassified_images, found.nested_dirs) == ({"c": 1}, ["a.JPG"], {"c/d"})
    assert (found.other_files, found.macos_files) == (["c/b.gif"], ["__MACOSX/c/b.png"])


def test_a_custom_corruption_set_is_checked_cell_by_cell(tmp_path: Path) -> None:
    files = grid_files(CORRUPTIONS, ("cat", "dog")) | {"fog/3/cat/0.JPEG": b"broken"}
    report = check_suite("custom", write_as_folder(tmp_path, files))
    assert report.findings == (
        f"fog/3: 1 of 2 sampled images cannot be decoded. {tmp_path}/fog/3/cat/0.JPEG: cannot be decoded"
        " (its format is unsupported). Replace it, or remove the sample",
    )
    assert report.summary == "custom: 75 cells: 150 images of 2 classes, 150 of them decoded"
