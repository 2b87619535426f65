import io
import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c2fmae.data.check import AREA_FRACTION_EDGES, CheckReport, check_dataset, format_class_table
from c2fmae.data.encode import TAR_END, encode_ids, encode_tar_member
from c2fmae.data.problems import Problem
from c2fmae.data.sources import inspect_scenes, open_scenes

DATASET = b'{"classes": [{"name": "sky"}, {"name": "cat"}, {"name": "dog"}], "labels": [{"name": "a"}, {"name": "b"}]}'
HEIGHT, WIDTH = 20, 30


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def bomb() -> bytes:
    """Return a PNG of a few hundred bytes with 13000 × 11000 pixels in its header."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 13000, 11000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + encode_ids(np.zeros((9, 9), np.uint8))[33:]


def sample(seed: int, *, semantic: int = 1, instance: int = 2, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> list[bytes]:
    """Return image, semantic and instance map: an object in a quarter of the image, the last line unlabelled."""
    classes, objects = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    rows, columns = shape[0] // 2, shape[1] // 2
    classes[:rows, :columns], objects[:rows, :columns] = semantic, instance
    classes[-1] = objects[-1] = 255
    return [jpeg(seed), encode_ids(classes), encode_ids(objects)]


def write_tree(root: Path, files: dict[str, list[bytes]]) -> Path:
    for key, parts in files.items():
        for name, data in zip((f"rgb/{key}.jpg", f"semantic/{key}.png", f"instance/{key}.png"), parts, strict=False):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
    (root / "dataset.json").write_bytes(DATASET)
    return root


def write_shard(root: Path, files: dict[str, bytes], end: bytes = TAR_END) -> Path:
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_bytes(DATASET)
    (root / "a.tar").write_bytes(b"".join(encode_tar_member(name, data) for name, data in files.items()) + end)
    return root / "a.tar"


def members(key: str, data: list[bytes], label: bytes = b"0") -> dict[str, bytes]:
    return dict(
        zip((f"{key}.jpg", f"{key}.semantic.png", f"{key}.instance.png", f"{key}.cls"), (*data, label), strict=True)
    )


def check(source: Path, workers: int = 1) -> CheckReport:
    return check_dataset(*inspect_scenes(source), workers=workers)


def faulty_tree(root: Path) -> Path:
    (image, semantic, instance), good = sample(1), sample(0)
    write_tree(
        root,
        {
            "a/good": good,
            "a/twin": [good[0], semantic, instance],
            "b/bomb": [bomb(), semantic, instance],
            "b/cut": [image[:-200], semantic, instance],
            "b/empty": [jpeg(2), b"", instance],
            "b/large": [jpeg(3), *sample(0, shape=(HEIGHT + 1, WIDTH))[1:]],
            "b/outside": sample(4, semantic=7),
            "b/partner": [jpeg(5), semantic],
            "b/text": [jpeg(6), semantic, b"not an image"],
            "a/late": sample(7),
        },
    )
    (root / "rgb" / "b" / "folder.jpg").mkdir()
    return root


def test_all_faults_of_a_tree_are_listed(tmp_path: Path) -> None:
    root = faulty_tree(tmp_path / "tree")
    report = check(root)
    assert {problem.key: problem.text for problem in report.problems} == {
        None: f"{root}/rgb/b/folder.jpg: is a directory with the suffix of an image. Rename or remove it",
        "a/twin": "sample 'a/twin' has the same image as 'a/good'. Remove one of them",
        "b/bomb": f"{root}/rgb/b/bomb.jpg: cannot be decoded (13000×11000 pixels, expected at most 134217728)."
        " Replace it, or remove the sample",
        "b/cut": f"{root}/rgb/b/cut.jpg: cannot be decoded (Premature end of JPEG file)."
        " Replace it, or remove the sample",
        "b/empty": f"{root}/semantic/b/empty.png: is not an id map. Store it as a PNG of one channel with 8 or 16 bits",
        "b/large": f"{root}/semantic/b/large.png: has 30×21 cells (expected 30×20 for an image of 30×20 pixels)."
        " Store both at one size",
        "b/outside": f"{root}/semantic/b/outside.png: id 7 on 150 pixels is outside the 3 classes of the label space."
        " Add the class to dataset.json, or map the id to its `ignore`",
        "b/partner": f"{root}: sample 'b/partner' has no instance/b/partner. Add it, or remove the sample",
        "b/text": f"{root}/instance/b/text.png: is not an id map. Store it as a PNG of one channel with 8 or 16 bits",
    }
    assert len(report.problems) == 9
    assert report.valid_keys == ("a/good", "a/late")
    assert report.num_scenes == 3


def test_valid_samples_can_be_opened_without_the_others(tmp_path: Path) -> None:
    root = faulty_tree(tmp_path / "tree")
    valid = open_scenes(root, keys=check(root).valid_keys)
    report = check_dataset(valid)
    assert (report.problems, report.valid_keys) == ((), ("a/good", "a/late"))


def test_faults_of_a_shard_are_reported_with_their_members(tmp_path: Path) -> None:
    good, later = members("good", sample(0)), members("later", sample(1))
    evil = {"../evil.jpg": b"", "/root.cls": b""}
    labels = members("invalid", sample(2), b"cat") | members("unknown", sample(3), b"2")
    shard = write_shard(tmp_path / "s", good | evil | labels | later, end=b"")
    shard.write_bytes(shard.read_bytes()[: -1024 - 480])
    report = check(shard)
    assert [problem.text for problem in report.problems] == [
        f"{shard}: member '../evil.jpg' points outside the tar. Pack it with relative names",
        f"{shard}: member '/root.cls' points outside the tar. Pack it with relative names",
        f"{shard}: truncated inside 'later.instance.png'. Copy or pack it again",
        f"{shard}: invalid.cls is not an integer of at least 0. Write the index of the class",
        f"{shard}: unknown.semantic.png: has label 2, but dataset.json names 2 labels. Add the missing ones",
    ]
    assert report.valid_keys == ("good",)


def test_counts_are_those_of_the_readable_scenes(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path / "t", {"a/a": sample(0), "a/b": sample(1), "b/c": sample(2, instance=0), "b/d": [b""] * 3}
    )
    report = check(tree)
    object_, last = 10 * 15, 30
    assert report.num_scenes == 3
    assert report.class_pixels[[0, 1, 2, 255]].tolist() == [3 * (600 - object_ - last), 3 * object_, 0, 3 * last]
    assert report.class_images[[0, 1, 2, 255]].tolist() == [3, 3, 0, 3]
    assert report.absent_classes == ("dog",)
    assert dict(report.object_counts) == {0: 1, 1: 2}
    assert report.num_objects == 2
    assert report.object_area_counts.tolist() == [
        2 * (low <= 0.25 < high) for low, high in pairwise(AREA_FRACTION_EDGES)
    ]
    assert dict(report.label_counts) == {0: 2, 1: 1}
    assert dict(report.image_size_counts) == {(30, 20): 3}


def test_the_table_lists_every_class_and_unlabelled_pixels(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {"a": sample(0), "b": sample(1)})
    assert format_class_table(check(tree)).splitlines() == [
        " id  class            pixels   images",
        "  0  sky              70.00%        2",
        "  1  cat              25.00%        2",
        "  2  dog               0.00%        0",
        "255  (not labelled)    5.00%        2",
    ]


def test_names_of_classes_stay_on_one_line_of_the_table(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {"a": sample(0)})
    path = tree / "dataset.json"
    path.write_text(path.read_text().replace("sky", "sky\\u001b[2J\\nnext: rm"))
    lines = format_class_table(check(tree)).splitlines()
    assert len(lines) == 5
    assert lines[1].startswith("  0  sky\\x1b[2J\\nnext: rm  ")


def test_a_table_without_names_ends_with_the_highest_id(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {"a": sample(0, semantic=2)})
    (tree / "dataset.json").unlink()
    assert [line.split()[0] for line in format_class_table(check(tree)).splitlines()] == ["id", "0", "1", "2", "255"]


def test_images_without_maps_can_be_checked(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {"a": [jpeg(0)], "b": [jpeg(0)]})
    (tree / "dataset.json").unlink()
    report = check_dataset(*inspect_scenes(tree / "rgb", granularities=("rgb",)))
    assert report.problems == (Problem("b", "sample 'b' has the same image as 'a'. Remove one of them"),)
    assert (report.valid_keys, len(report.object_counts), int(report.class_pixels.sum())) == (("a",), 0, 0)


def test_maps_without_images_can_be_checked(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {"a": sample(0), "b": sample(0)})
    report = check_dataset(*inspect_scenes(tree, granularities=("semantic", "instance")))
    assert (report.problems, report.valid_keys, dict(report.image_size_counts)) == ((), ("a", "b"), {(30, 20): 2})


def test_images_of_16_bits_without_a_range_of_values_are_counted(tmp_path: Path) -> None:
    values = np.arange(600, dtype=np.uint16).reshape(20, 30)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", values + 1)
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "c.png")
    assert check(tmp_path).num_losing_bits == 2
    (tmp_path / "dataset.json").write_text('{"value_range": [0, 600]}')
    assert check(tmp_path).num_losing_bits == 0


def test_a_source_that_cannot_be_opened_is_reported() -> None:
    problem = Problem(None, "a.tar: not a complete tar")
    report = check_dataset(None, [problem])
    assert (report.problems, report.valid_keys, report.num_scenes) == ((problem,), (), 0)


@pytest.mark.unchecked
def test_two_processes_give_the_same_report_as_one(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {f"{i:03d}": sample(i, instance=i) for i in range(140)} | {"x": [b""] * 3})
    progress = list[int]()
    expected, report = check(tree), check_dataset(*inspect_scenes(tree), workers=2, progress=progress.append)
    assert sum(progress) == 141
    for name, value in vars(expected).items():
        np.testing.assert_equal(vars(report)[name], value)
