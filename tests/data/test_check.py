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
    """A PNG of a few hundred bytes that says it has 13000 × 11000 pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 13000, 11000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + encode_ids(np.zeros((9, 9), np.uint8))[33:]


def sample(seed: int, *, semantic: int = 1, instance: int = 2, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> list[bytes]:
    """Photo, semantic and instance map: an object in a quarter of the picture, the last line not labelled."""
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


def members(key: str, parts: list[bytes], label: bytes = b"0") -> dict[str, bytes]:
    return dict(
        zip((f"{key}.jpg", f"{key}.semantic.png", f"{key}.instance.png", f"{key}.cls"), (*parts, label), strict=True)
    )


def checked(source: Path, workers: int = 1) -> CheckReport:
    return check_dataset(*inspect_scenes(source), workers=workers)


def faulty_tree(root: Path) -> Path:
    (photo, semantic, instance), good = sample(1), sample(0)
    write_tree(
        root,
        {
            "a/good": good,
            "a/twin": [good[0], semantic, instance],
            "b/bomb": [bomb(), semantic, instance],
            "b/cut": [photo[:-200], semantic, instance],
            "b/empty": [jpeg(2), b"", instance],
            "b/large": [jpeg(3), *sample(0, shape=(HEIGHT + 1, WIDTH))[1:]],
            "b/outside": sample(4, semantic=7),
            "b/partner": [jpeg(5), semantic],
            "b/text": [jpeg(6), semantic, b"no picture"],
            "a/late": sample(7),
        },
    )
    (root / "rgb" / "b" / "folder.jpg").mkdir()
    return root


def test_every_kind_of_fault_in_a_tree_is_listed_and_the_check_goes_on(tmp_path: Path) -> None:
    root = faulty_tree(tmp_path / "tree")
    report = checked(root)
    assert {problem.key: problem.text for problem in report.problems} == {
        None: f"{root}/rgb/b/folder.jpg: a folder where a picture should be. Rename or remove it",
        "a/twin": "sample 'a/twin' has the same photo as 'a/good'. Remove one of them",
        "b/bomb": f"{root}/rgb/b/bomb.jpg: not readable as a picture (13000×11000 pixels, more than 134217728)."
        " Replace it, or remove the sample",
        "b/cut": f"{root}/rgb/b/cut.jpg: not readable as a picture (Premature end of JPEG file)."
        " Replace it, or remove the sample",
        "b/empty": f"{root}/semantic/b/empty.png: not a map of ids. Store it as a PNG of one channel at 8 or 16 bits",
        "b/large": f"{root}/semantic/b/large.png: 30×21 cells, but a photo of 30×20 pixels takes 30×20."
        " Store both in one size",
        "b/outside": f"{root}/semantic/b/outside.png: id 7 on 150 pixels is outside the 3 classes of the label space."
        " Add the class to dataset.json, or map the id to its `ignore`",
        "b/partner": f"{root}: sample 'b/partner' lacks instance/b/partner. Add it, or remove the sample",
        "b/text": f"{root}/instance/b/text.png: not a map of ids. Store it as a PNG of one channel at 8 or 16 bits",
    }
    assert len(report.problems) == 9
    assert report.valid_keys == ("a/good", "a/late")
    assert report.num_scenes == 3


def test_what_is_good_opens_once_the_others_are_left_out(tmp_path: Path) -> None:
    root = faulty_tree(tmp_path / "tree")
    good = open_scenes(root, keys=checked(root).valid_keys)
    again = check_dataset(good)
    assert (again.problems, again.valid_keys) == ((), ("a/good", "a/late"))


def test_a_shard_that_is_cut_short_and_leads_out_of_itself_is_reported_with_its_members(tmp_path: Path) -> None:
    good, later = members("good", sample(0)), members("later", sample(1))
    evil = {"../evil.jpg": b"", "/root.cls": b""}
    labels = members("odd", sample(2), b"cat") | members("unknown", sample(3), b"2")
    shard = write_shard(tmp_path / "s", good | evil | labels | later, end=b"")
    shard.write_bytes(shard.read_bytes()[: -1024 - 480])
    report = checked(shard)
    assert [problem.text for problem in report.problems] == [
        f"{shard}: member '../evil.jpg' points out of the shard. Pack it with relative names",
        f"{shard}: member '/root.cls' points out of the shard. Pack it with relative names",
        f"{shard}: cut short inside 'later.instance.png'. Copy or pack it again",
        f"{shard}: odd.cls is not a whole number from 0 on. Write the class's index",
        f"{shard}: unknown.semantic.png: its label is 2, but dataset.json names 2 labels. Add the missing names",
    ]
    assert report.valid_keys == ("good",)


def test_counts_are_those_of_the_scenes_that_can_be_read(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path / "t", {"a/a": sample(0), "a/b": sample(1), "b/c": sample(2, instance=0), "b/d": [b""] * 3}
    )
    report = checked(tree)
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


def test_the_table_names_every_class_and_what_nobody_labelled(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {"a": sample(0), "b": sample(1)})
    assert format_class_table(checked(tree)).splitlines() == [
        " id  class            pixels   images",
        "  0  sky              70.00%        2",
        "  1  cat              25.00%        2",
        "  2  dog               0.00%        0",
        "255  (not labelled)    5.00%        2",
    ]


def test_a_table_without_names_ends_with_the_highest_id(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {"a": sample(0, semantic=2)})
    (tree / "dataset.json").unlink()
    assert [line.split()[0] for line in format_class_table(checked(tree)).splitlines()] == ["id", "0", "1", "2", "255"]


def test_photos_alone_can_be_checked(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {"a": [jpeg(0)], "b": [jpeg(0)]})
    (tree / "dataset.json").unlink()
    report = check_dataset(*inspect_scenes(tree / "rgb", granularities=("rgb",)))
    assert report.problems == (Problem("b", "sample 'b' has the same photo as 'a'. Remove one of them"),)
    assert (report.valid_keys, len(report.object_counts), int(report.class_pixels.sum())) == (("a",), 0, 0)


def test_maps_alone_can_be_checked(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {"a": sample(0), "b": sample(0)})
    report = check_dataset(*inspect_scenes(tree, granularities=("semantic", "instance")))
    assert (report.problems, report.valid_keys, dict(report.image_size_counts)) == ((), ("a", "b"), {(30, 20): 2})


def test_nothing_to_open_is_a_report_of_why() -> None:
    problem = Problem(None, "a.tar: not a whole tar")
    report = check_dataset(None, [problem])
    assert (report.problems, report.valid_keys, report.num_scenes) == ((problem,), (), 0)


@pytest.mark.once
def test_two_processes_report_what_one_does(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "t", {f"{i:03d}": sample(i, instance=i) for i in range(140)} | {"x": [b""] * 3})
    progress = list[int]()
    alone, both = checked(tree), check_dataset(*inspect_scenes(tree), workers=2, progress=progress.append)
    assert sum(progress) == 141
    for name, value in vars(alone).items():
        np.testing.assert_equal(vars(both)[name], value)
