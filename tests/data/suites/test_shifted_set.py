"""Small sets in the official layouts, as directories and tars: classes, counts and errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from c2fmae.data.corruption.names import CORRUPTION_GROUPS, CORRUPTIONS
from c2fmae.data.folders import open_folder_tree
from c2fmae.data.suites import Cell, ShiftedSet, open_shifted_set
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
"""Indices 0, 1 and 278 of ImageNet; in other orders 278 is before smaller ones."""


def list_images(cell: Cell, shifted_set: ShiftedSet) -> list[tuple[str, str | None, bytes | None]]:
    """Return key, WordNet id and bytes of every image."""
    images = []
    for row, key in enumerate(cell.scenes.keys):
        label = cell.scenes[row].label
        assert label is not None
        entry = shifted_set.labels[label]
        assert entry is not None
        images.append((key, entry.wnid, cell.scenes.read_image_bytes(row)))
    return images


DOTS = "0.000116_digital clock _ digital clock_0.86{i}662.jpg"
SETS = {
    "imagenet-a": class_files("imagenet-a/", (ONLY_IN_A, *IN_BOTH), name=DOTS) | {"imagenet-a/README.txt": b""},
    "imagenet-r": class_files("imagenet-r/", (*IN_BOTH, ONLY_IN_R), name="art_{i}.jpg")
    | {"imagenet-r/README.txt": b""},
    "sketch": class_files("sketch/", VAL, name="sketch_{i}.JPEG"),
    "imagenet-val": class_files("val/", VAL, name="ILSVRC2012_val_0000000{i}.JPEG"),
}


@pytest.mark.parametrize("kind", SETS)
def test_a_tar_is_the_same_set_as_the_directory_it_was_made_of(tmp_path: Path, kind: str) -> None:
    files = SETS[kind]
    top = next(iter(files)).partition("/")[0]
    inner, outer = (open_shifted_set(kind, write_as_folder(tmp_path / "folder", files) / part) for part in (top, ""))
    tar = open_shifted_set(kind, write_as_tar(tmp_path / "any.tar", files))
    lone = open_shifted_set(kind, write_as_tar(tmp_path / "downloaded/any.tar", files).parent)
    expected = sorted((path, data) for path, data in files.items() if not path.endswith(".txt"))
    for opened in (inner, outer, tar, lone):
        (cell,) = opened.cells
        images = list_images(cell, opened)
        assert [(f"{top}/{key}", data) for key, _, data in images] == [
            (path.rpartition(".")[0], data) for path, data in expected
        ]
        assert all(key.startswith(f"{wnid}/") for key, wnid, _ in images)
        assert opened.labels == inner.labels
        assert opened.identity == inner.identity
        assert opened.warnings == inner.warnings
        assert (opened.suite, opened.name, opened.is_cropped, opened.creation_sentence) == (kind, kind, False, None)


def test_classes_are_matched_by_wordnet_id_whatever_their_order(tmp_path: Path) -> None:
    labels = [{"name": "fox", "wnid": VAL[2]}, None, {"name": "tench", "wnid": VAL[0]}, {"name": VAL[1]}]
    images = [(f"p{label}-{i}", make_jpeg(f"p{label}-{i}"), label) for label in (0, 2, 3) for i in range(2)]
    shard = write_as_shard(tmp_path / "s/val-000.tar", images)
    write_tree(tmp_path / "s", {"dataset.json": json.dumps({"labels": labels}).encode()})
    files = {path.replace(VAL[0], "tench"): data for path, data in class_files("", VAL).items()}
    folder = write_as_folder(tmp_path / "f", files | {"dataset.json": json.dumps({"labels": labels}).encode()})
    wnids = {"fox": VAL[2], "tench": VAL[0], VAL[1]: VAL[1]}
    for source in (shard, shard.parent, folder, f"{shard.parent}/val-*.tar"):
        opened = open_shifted_set("imagenet-val", source)
        assert [entry and (entry.name, entry.wnid) for entry in opened.labels] == [
            ("fox", VAL[2]), None, ("tench", VAL[0]), (VAL[1], VAL[1]),
        ]  # fmt: skip
        for key, wnid, _ in list_images(opened.cells[0], opened):
            assert wnid == (VAL[[2, 9, 0, 1][int(key[1])]] if key[0] == "p" else wnids.get(key.split("/")[0], key[:9]))


def test_protocol_classes_are_those_of_the_suite_even_if_a_set_has_fewer(tmp_path: Path) -> None:
    sets = {kind: open_shifted_set(kind, write_as_folder(tmp_path / kind, files)) for kind, files in SETS.items()}
    a, r = sets["imagenet-a"].protocol_wnids, sets["imagenet-r"].protocol_wnids
    assert a is not None
    assert r is not None
    assert len(a) == len(r) == 200
    assert a != r
    assert sets["sketch"].protocol_wnids is sets["imagenet-val"].protocol_wnids is None


def test_an_incomplete_set_is_opened_with_warnings(tmp_path: Path) -> None:
    opened = open_shifted_set("a", write_as_folder(tmp_path, SETS["imagenet-a"]))
    assert opened.warnings == (
        "3 of 200 classes: the set is incomplete",
        "6 of 7,500 images: the set is incomplete",
    )
    assert opened.cells[0].expected_images == 7500
    notes = [Cell(None, None, opened.cells[0].scenes, expected).count_sentence for expected in (None, 6, 5)]
    assert notes == [None, None, "6 images, more than the 5 of the complete set"]


@pytest.mark.parametrize("make", [write_as_folder, write_as_tar])
def test_classes_that_a_suite_does_not_have_are_refused(tmp_path: Path, make: Make) -> None:
    a = make(tmp_path / "a.tar", class_files("a/", (ONLY_IN_A, *IN_BOTH)))
    inside = f"{a}/a" if a.is_dir() else f"{a}: a"
    assert_user_error(
        lambda: open_shifted_set("imagenet-r", a),
        f"{inside}: 1 of its 3 classes are not classes of ImageNet-R (for example '{ONLY_IN_A}'); all of them are"
        " classes of ImageNet-A. Check that the set is given as the right suite",
    )
    val = make(tmp_path / "v.tar", class_files("", (ONLY_IN_A, *VAL)))
    assert_user_error(
        lambda: open_shifted_set("imagenet-a", val),
        f"{val}: 3 of its 4 classes are not classes of ImageNet-A (for example '{VAL[0]}'); all of them are classes of"
        " ImageNet-C, ImageNet-ReaL, ImageNetV2, the ImageNet validation set, ImageNet-W,"
        " ImageNet-Sketch. Check that the set is given as the right suite",
    )
    wrong = make(tmp_path / "w.tar", class_files("", (*VAL, "n00000001")))
    assert_user_error(
        lambda: open_shifted_set("sketch", wrong),
        f"{wrong}: 1 of its 4 classes are not classes of ImageNet-Sketch (for example 'n00000001')."
        " Name class directories by WordNet id (n01440764), or give the set as a custom one",
    )
    names = make(tmp_path / "n.tar", class_files("", ("cat", "dog")))
    assert_user_error(
        lambda: open_shifted_set("imagenet-val", names),
        f"{names}: 2 of its 2 classes are not classes of the ImageNet validation set (for example 'cat')."
        " Name class directories by WordNet id (n01440764), or give the set as a custom one",
    )


def test_only_classes_that_images_of_a_shard_have_are_checked(tmp_path: Path) -> None:
    labels = [{"name": "another", "wnid": "n01440764"}, {"name": "flamingo", "wnid": ONLY_IN_A}]
    shard = write_as_shard(tmp_path / "a.tar", [("x", make_jpeg("x"), 1)])
    write_tree(tmp_path, {"dataset.json": json.dumps({"labels": labels}).encode()})
    assert open_shifted_set("imagenet-a", shard).warnings[0] == "1 of 200 classes: the set is incomplete"
    assert_user_error(
        lambda: open_shifted_set("imagenet-r", shard),
        f"{shard}: 1 of its 1 classes are not classes of ImageNet-R (for example '{ONLY_IN_A}'); all of them are"
        " classes of ImageNet-A. Check that the set is given as the right suite",
    )


@pytest.mark.parametrize("make", [write_as_folder, write_as_tar])
def test_the_official_validation_archive_without_class_directories_is_refused(tmp_path: Path, make: Make) -> None:
    source = make(tmp_path / "val.tar", {f"ILSVRC2012_val_0000000{i}.JPEG": make_jpeg(str(i)) for i in range(3)})
    assert_user_error(
        lambda: open_shifted_set("imagenet-val", source),
        f"{source}: no class directories (expected CLASS/NAME.jpg). The official validation archive has none: move each"
        " image into a directory named by the WordNet id of its class, which the devkit's ground truth lists",
    )


def test_sources_in_no_known_layout_are_refused(tmp_path: Path) -> None:
    zipped = tmp_path / "sketch.zip"
    zipped.write_bytes(b"PK")
    assert_user_error(
        lambda: open_shifted_set("sketch", zipped),
        f"{zipped}: single images cannot be read from a zip. Extract it: unzip {zipped}",
    )
    assert_user_error(
        lambda: open_shifted_set("imagenet-c", tmp_path / "none"),
        f"{tmp_path}/none: does not exist. Give the directory that holds the corruptions",
    )
    val = write_as_folder(tmp_path / "val", class_files("", VAL))
    assert_user_error(
        lambda: open_shifted_set("c", val),
        f"{val}: not the layout of ImageNet-C (expected CORRUPTION/SEVERITY/CLASS/NAME.JPEG, or tars of it)."
        " Give the directory that holds the corruptions",
    )
    nested = write_as_folder(tmp_path / "nested", class_files(f"{VAL[0]}/", ["more"]) | class_files("", VAL))
    assert_user_error(
        lambda: open_shifted_set("imagenet-val", nested),
        f"{nested}: directory '{VAL[0]}/more' is not a class of the set. Did you mean '{VAL[0]}'?",
    )
    stray = write_as_folder(tmp_path / "stray", class_files("", VAL) | {"stray.jpg": make_jpeg("s")})
    assert_user_error(
        lambda: open_shifted_set("imagenet-val", stray),
        f"{stray}: 'stray' is in no class directory. Move it into one, or remove it",
    )


def test_hidden_directories_and_those_of_macos_are_ignored(tmp_path: Path) -> None:
    files = class_files("", VAL)
    folder, grid = write_as_folder(tmp_path / "v", files), write_as_folder(tmp_path / "c", grid_files(["fog"], VAL))
    write_as_tar(tmp_path / "downloaded/val.tar", files | {"__MACOSX/n01440764/._0.JPEG": b""})
    wrapped = write_as_folder(tmp_path / "w", {f"val/{path}": data for path, data in files.items()})
    for place in (folder, grid, grid / "fog", grid / "fog/1", tmp_path / "downloaded", wrapped):
        for name in ("__MACOSX", ".thumbs"):
            (place / name).mkdir()
    for source in (folder, tmp_path / "downloaded", wrapped):
        for kind in ("imagenet-val", "custom"):
            opened = open_shifted_set(kind, source)
            assert [entry and entry.name for entry in opened.labels] == [*VAL]
            assert len(opened.cells[0].scenes) == 6
    opened = open_shifted_set("imagenet-c", grid)
    assert [entry and entry.wnid for entry in opened.labels] == [*VAL]
    assert not any("__MACOSX" in text or ".thumbs" in text for text in opened.warnings)


def test_a_shard_without_labels_is_refused(tmp_path: Path) -> None:
    shard = write_as_shard(tmp_path / "s.tar", [("a", make_jpeg("a"), 0)])
    assert_user_error(
        lambda: open_shifted_set("custom", shard),
        f"{shard}: has images without a label. Use labelled shards, or a directory for each class",
    )


def test_a_custom_set_has_the_classes_of_its_directories(tmp_path: Path) -> None:
    folder = write_as_folder(tmp_path / "rainy", class_files("", ("cat", VAL[1], "dog")))
    opened = open_shifted_set("custom", folder)
    assert [entry and (entry.name, entry.wnid) for entry in opened.labels] == [
        ("cat", None), ("dog", None), (VAL[1], VAL[1]),
    ]  # fmt: skip
    assert (opened.name, opened.protocol_wnids, opened.warnings) == ("rainy", None, ())
    assert open_shifted_set("custom", folder, "wet").name == "wet"
    assert opened.cells[0].expected_images is None


GRID = grid_files(CORRUPTIONS, VAL)


def split_into_tars(root: Path, files: dict[str, bytes], groups: list[str]) -> Path:
    """Write some groups as the official tars, and the others as directories."""
    for group in groups:
        part = {path: data for path, data in files.items() if path.split("/")[0] in CORRUPTION_GROUPS[group]}
        write_as_tar(root / f"{group}.tar", part)
    rest = {
        path: data
        for path, data in files.items()
        if not any(path.split("/")[0] in CORRUPTION_GROUPS[g] for g in groups)
    }
    return write_as_folder(root, rest) if rest else root


def list_cells(shifted_set: ShiftedSet) -> list[tuple[str | None, int | None]]:
    return [(cell.corruption, cell.severity) for cell in shifted_set.cells]


@pytest.mark.parametrize("groups", [[], ["blur", "digital", "noise", "weather"], ["blur", "noise"]])
def test_cells_are_found_in_directories_and_in_the_official_tars(tmp_path: Path, groups: list[str]) -> None:
    opened = open_shifted_set("imagenet-c", split_into_tars(tmp_path, GRID, groups))
    assert list_cells(opened) == [(name, severity) for name in CORRUPTIONS for severity in range(1, 6)]
    assert opened.warnings == ("3 of 1,000 classes: the set is incomplete",)
    assert (opened.is_cropped, opened.creation_sentence, opened.protocol_wnids) == (True, None, None)
    for cell in (opened.cells[0], opened.cells[17], opened.cells[-1]):
        expected = [(f"{wnid}/0", wnid, GRID[f"{cell.corruption}/{cell.severity}/{wnid}/0.JPEG"]) for wnid in VAL]
        assert list_images(cell, opened) == expected
        assert (cell.expected_images, cell.count_sentence) == (50_000, "3 of 50,000 images: the set is incomplete")


def test_missing_and_unexpected_corruptions_are_warnings_and_extra_ones_come_last(tmp_path: Path) -> None:
    files = grid_files(["fog", "saturate", "gausian_noise"], VAL) | grid_files(["snow"], VAL, severities=(1, 3, 6))
    opened = open_shifted_set("imagenet-c", write_as_folder(tmp_path, files))
    five = range(1, 6)
    expected = [("snow", 1), ("snow", 3), *(("fog", s) for s in five), *(("saturate", s) for s in five)]
    assert list_cells(opened) == expected
    missing = [name for name in CORRUPTIONS if name not in ("fog", "snow")]
    assert opened.warnings == (
        f"13 of the 15 corruptions missing: {', '.join(missing)}",
        "snow: severities 2, 4, 5 missing",
        f"{tmp_path}/gausian_noise: not a corruption of ImageNet-C. Did you mean 'gaussian_noise'?",
        f"{tmp_path}/snow/6: not a severity (expected 1 to 5)",
        "3 of 1,000 classes: the set is incomplete",
    )


@pytest.mark.parametrize("wrapping", ["ImageNet-C/", "ImageNet-C/weather/", "weather/"])
def test_corruptions_are_found_inside_directories_of_the_archive_and_of_groups(tmp_path: Path, wrapping: str) -> None:
    files = {f"{wrapping}{path}": data for path, data in grid_files(["fog"], VAL, severities=[2]).items()}
    for source in (write_as_folder(tmp_path / "f", files), write_as_tar(tmp_path / "t.tar", files)):
        opened = open_shifted_set("imagenet-c", source)
        assert list_cells(opened) == [("fog", 2)]
        assert [wnid for _, wnid, _ in list_images(opened.cells[0], opened)] == list(VAL)


def test_a_corruption_set_with_other_classes_is_refused_as_imagenet_c(tmp_path: Path) -> None:
    root = write_as_folder(tmp_path, grid_files(["fog"], (*VAL, "cat"), severities=[1]))
    assert_user_error(
        lambda: open_shifted_set("imagenet-c", root),
        f"{root}: 1 of its 4 classes are not classes of ImageNet-C (for example 'cat')."
        " Name class directories by WordNet id (n01440764), or give the set as a custom one",
    )


def test_a_cell_in_a_directory_and_in_a_tar_is_read_from_the_directory(tmp_path: Path) -> None:
    files = grid_files(["fog"], VAL, severities=[1])
    root = write_as_folder(tmp_path, files)
    write_as_tar(root / "weather.tar", {path: make_jpeg(f"other {path}") for path in grid_files(["fog"], VAL)})
    opened = open_shifted_set("imagenet-c", root)
    assert len(opened.cells) == 5
    assert [opened.cells[0].scenes.read_image_bytes(row) for row in range(3)] == [
        files[f"fog/1/{wnid}/0.JPEG"] for wnid in VAL
    ]
    assert opened.cells[1].scenes.read_image_bytes(0) == make_jpeg(f"other fog/2/{VAL[0]}/0.JPEG")


def test_corruptions_may_be_inside_the_directories_of_their_groups(tmp_path: Path) -> None:
    files = {f"weather/{path}": data for path, data in grid_files(["fog"], VAL, severities=[2]).items()}
    files |= {f"noise/{path}": data for path, data in grid_files(["shot_noise"], VAL, severities=[1]).items()}
    assert list_cells(open_shifted_set("imagenet-c", write_as_folder(tmp_path, files))) == [
        ("shot_noise", 1),
        ("fog", 2),
    ]


def test_an_archive_beside_its_extracted_directories_is_ignored(tmp_path: Path) -> None:
    folder = write_as_folder(tmp_path, class_files("", VAL))
    (folder / "val.tar").write_bytes(b"not a tar")
    assert len(open_shifted_set("imagenet-val", folder).cells[0].scenes) == 6


def test_shards_are_not_read_as_archives(tmp_path: Path) -> None:
    for number in range(2):
        write_as_shard(tmp_path / f"own-00{number}.tar", [(f"n/{number}", make_jpeg("a"), 0)])
    write_tree(tmp_path, {"dataset.json": json.dumps({"labels": [{"name": "cat"}]}).encode()})
    for source in (tmp_path, tmp_path / "own-000.tar", f"{tmp_path}/own-*.tar"):
        assert open_shifted_set("custom", source).labels[0] is not None
    assert not list(tmp_path.glob("*.tree.index"))


def test_cells_without_some_classes_have_the_labels_of_the_set(tmp_path: Path) -> None:
    files = grid_files(["fog"], VAL, severities=[1]) | grid_files(["fog"], VAL[1:], severities=[2])
    opened = open_shifted_set("imagenet-c", write_as_folder(tmp_path, files))
    assert [[wnid for _, wnid, _ in list_images(cell, opened)] for cell in opened.cells] == [[*VAL], [*VAL[1:]]]


@pytest.mark.unchecked  # shape checks read the keys of all scenes
def test_images_of_a_corruption_set_are_listed_on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_as_folder(tmp_path, grid_files(["fog", "snow"], VAL))
    listed = list[str]()

    def counted(root: Path, *rest: Any) -> object:
        listed.append(str(root.relative_to(tmp_path)))
        return open_folder_tree(root, *rest)

    monkeypatch.setattr("c2fmae.data.suites.dir_tree.open_folder_tree", counted)
    opened = open_shifted_set("imagenet-c", root)
    assert listed == []
    cell = opened.cells[6]
    assert len(cell.scenes) == len(cell.scenes.keys) == 3
    assert cell.scenes[1].label == 1
    assert listed == ["fog/2"]


def test_tars_that_were_extracted_completely_are_ignored(tmp_path: Path) -> None:
    write_as_folder(tmp_path, GRID)
    (tmp_path / "blur.tar").write_bytes(b"not a tar")
    assert len(open_shifted_set("imagenet-c", tmp_path).cells) == 75


def make_record(size: list[int] | None) -> dict[str, object]:
    tool = "imagecorruptions-imaug 1.1.5"
    return {"made_by": "c2fmae 0.1.0", "tool": tool, "source": "pets", "size": size, "crop": 0.875, "quality": 85}


@pytest.mark.parametrize(("size", "size_text"), [([64, 96], " at 96×64"), (None, " at the images' own sizes")])
@pytest.mark.parametrize("kind", ["custom", "imagenet-c"])
def test_a_set_with_a_creation_record_is_described_by_it(
    tmp_path: Path, kind: str, size: list[int] | None, size_text: str
) -> None:
    labels = [{"name": "fox", "wnid": VAL[2]}, {"name": "goldfish", "wnid": VAL[1]}, {"name": "no image of it"}]
    files = grid_files(["fog", "snow"], VAL[1:], severities=[1, 2])
    info = {"name": "pets-c", "labels": labels, "corrupted": make_record(size)}
    root = write_as_folder(tmp_path, files | {"dataset.json": json.dumps(info).encode()})
    opened = open_shifted_set(kind, root)
    assert opened.is_cropped is (size is not None)
    assert opened.creation_sentence == (
        f"created by c2fmae 0.1.0 with imagecorruptions-imaug 1.1.5 from pets{size_text}, JPEG quality 85;"
        " not the released ImageNet-C"
    )
    assert opened.name == ("pets-c" if kind == "custom" else "imagenet-c")
    assert [entry and entry.name for entry in opened.labels] == ["fox", "goldfish", "no image of it"]
    assert opened.warnings[1] == "snow, fog: severities 3, 4, 5 missing"
    assert opened.warnings[2:] == (("2 of 1,000 classes: the set is incomplete",) if kind == "imagenet-c" else ())
    assert [wnid for _, wnid, _ in list_images(opened.cells[0], opened)] == [VAL[1], VAL[2]]
    assert opened.cells[0].expected_images == (None if kind == "custom" else 50_000)


def test_a_custom_corruption_set_has_the_classes_of_its_directories(tmp_path: Path) -> None:
    opened = open_shifted_set("custom", write_as_folder(tmp_path, grid_files(["fog"], ["cat", "dog"], severities=[1])))
    assert list_cells(opened) == [("fog", 1)]
    assert (opened.is_cropped, opened.creation_sentence) == (False, None)


def test_the_identity_of_a_set_changes_with_its_images(tmp_path: Path) -> None:
    folder = write_as_folder(tmp_path / "v", class_files("", VAL))
    grid = write_as_folder(tmp_path / "c", grid_files(["fog"], VAL))
    first = [open_shifted_set("imagenet-val", folder), open_shifted_set("imagenet-c", grid)]
    second = [open_shifted_set("imagenet-val", folder), open_shifted_set("imagenet-c", grid)]
    assert [opened.identity for opened in first] == [opened.identity for opened in second]
    assert open_shifted_set("sketch", folder).identity != first[0].identity
    (folder / VAL[0] / "more.jpg").write_bytes(make_jpeg("more"))
    (grid / "fog/5" / VAL[2] / "more.jpg").write_bytes(make_jpeg("more"))
    assert open_shifted_set("imagenet-val", folder).identity != first[0].identity
    changed = open_shifted_set("imagenet-c", grid)
    assert changed.identity != first[1].identity
    cells = zip(first[1].cells, changed.cells, strict=True)
    assert [old.identity == new.identity for old, new in cells] == [True] * 4 + [False]


def test_a_cell_keeps_its_identity_when_other_cells_are_added(tmp_path: Path) -> None:
    info = {"labels": [{"name": wnid} for wnid in VAL], "corrupted": make_record(None) | {"unfinished": ["fog/1"]}}
    files = grid_files(["fog"], VAL) | {"dataset.json": json.dumps(info).encode()}
    before = open_shifted_set("custom", write_as_folder(tmp_path, files))
    assert before.warnings[-1] == "unfinished cells: fog/1"
    info["corrupted"] = make_record(None)
    files = grid_files(["snow"], VAL) | {"dataset.json": json.dumps(info).encode()}
    after = open_shifted_set("custom", write_as_folder(tmp_path, files))
    assert [cell.identity for cell in after.cells if cell.corruption == "fog"] == [c.identity for c in before.cells]
    assert len({cell.identity for cell in after.cells}) == 10
