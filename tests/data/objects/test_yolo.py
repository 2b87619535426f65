from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

from c2fmae.data.objects import count_objects, inspect_objects, open_objects
from tests.data.dataset_files import assert_user_error
from tests.data.objects.layouts import SIZE, write_image, write_yolo

HEIGHT, WIDTH = SIZE


def test_boxes_are_read_in_pixels(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path, {"a": "1 0.5 0.5 0.2 0.4\n\n0 0.1 0.1 0.2 0.2\n", "b": None, "c": "\n"})
    scenes = open_objects(folder)
    assert [entry.name for entry in scenes.info.object_classes] == ["cat", "dog"]
    assert list(scenes.keys) == ["a", "b", "c"]
    objects = scenes[0].objects
    assert objects is not None
    assert objects.boxes.numpy() == pytest.approx(np.array([[12, 6, 18, 14], [0, 0, 6, 4]]), abs=1e-5)
    assert objects.areas.tolist() == pytest.approx([48, 24])
    assert objects.labels.tolist() == [1, 0]
    assert objects.masks is None
    assert len(set(objects.ids.tolist())) == 2
    assert [len(scenes[index].objects or ()) for index in (1, 2)] == [0, 0]
    counts = count_objects(scenes)
    assert counts is not None
    assert counts.tolist() == [2, 0, 0]


def test_polygons_become_the_masks_of_pycocotools(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    polygons = rng.random((20, 12)).round(4)
    lines = [" ".join(map(str, [number % 2, *polygon])) for number, polygon in enumerate(polygons)]
    scenes = open_objects(write_yolo(tmp_path, {"a": "\n".join(lines), "b": None}))
    objects = scenes[0].objects
    assert objects is not None
    points = polygons * np.tile([WIDTH, HEIGHT], 6)
    expected = [coco_mask.frPyObjects([polygon.tolist()], HEIGHT, WIDTH)[0] for polygon in points]
    assert objects.masks == tuple(entry["counts"] for entry in expected)
    assert objects.areas.tolist() == [float(coco_mask.area(entry)) for entry in expected]
    corners = np.concatenate([points.reshape(20, 6, 2).min(1), points.reshape(20, 6, 2).max(1)], axis=1)
    assert objects.boxes.numpy() == pytest.approx(corners, abs=1e-4)
    assert scenes[1].objects is not None
    assert scenes[1].objects.masks == ()
    boxes_only = open_objects(tmp_path / "images/val", masks=False)[0].objects
    assert boxes_only is not None
    assert boxes_only.masks is None
    assert boxes_only.boxes.equal(objects.boxes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 x 0.2", "'0 0.5 0.5 x 0.2' are not numbers (expected a class, then coordinates). Fix it"),
        ("0 0.5 0.5 0.1", "has 3 coordinates (expected 4 of a box, or x and y of at least 3 points). Fix or remove it"),
        ("0 .1 .1 .2 .2 .3", "has 5 coordinates (expected 4 of a box, or x and y of at least 3 points). Fix or remove"),
        ("2 0.5 0.5 0.1 0.1", "class 2 is not one of the 2 names of data.yaml. Add it there"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not one of the 2 names of data.yaml. Add it there"),
        ("nan 0.5 0.5 0.1 0.1", "class nan is not one of the 2 names of data.yaml. Add it there"),
        ("0 120 80 30 40", "coordinate 120 is not a fraction of the image (expected 0 to 1). Fix it"),
        ("0 0.5 nan 0.1 0.1", "coordinate nan is not a fraction of the image (expected 0 to 1). Fix it"),
    ],
)  # fmt: skip
def test_an_invalid_line_is_a_problem_of_its_image(tmp_path: Path, line: str, message: str) -> None:
    folder = write_yolo(tmp_path, {"a": f"0 0.5 0.5 0.2 0.4\n{line}\n", "b": "0 0.5 0.5 0.2 0.4"})
    scenes, (problem,) = inspect_objects(folder)
    assert problem.key == "a"
    assert problem.text.startswith(f"{tmp_path}/labels/val/a.txt: line 2: {message}")
    assert scenes is not None
    assert list(scenes.keys) == ["b"]


def test_boxes_among_polygons_are_an_error_unless_only_boxes_are_read(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.4\n0 .1 .1 .5 .5 .9 .1"})
    message = (
        "has 1 box and 1 polygon. Give a polygon for every object, or read boxes only: --boxes-only of `c2fmae data`,"
        " or --set mask_head=null of `c2fmae eval detect`"
    )
    assert_user_error(lambda: open_objects(folder), f"{tmp_path}/labels/val: {message}")
    assert len(open_objects(folder, masks=False)[0].objects or ()) == 2


def test_text_files_that_belong_to_no_image_are_an_error(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path, {"a": None, "b": ""})
    (tmp_path / "labels/val/other.txt").write_text("0 .5 .5 .5 .5")
    message = f"{tmp_path}/labels/val: has no objects for the 2 images of {folder}. Check the path"
    assert_user_error(lambda: open_objects(folder), message)


def test_text_files_may_be_beside_the_images(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_image(tmp_path / split / "a.jpg")
        (tmp_path / split / "a.txt").write_text("0 .5 .5 .5 .5")
    (tmp_path / "data.yaml").write_text("names: [cat]")
    assert len(open_objects(tmp_path / "train")[0].objects or ()) == 1


def test_missing_names_are_an_error(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path, {"a": "1 .5 .5 .5 .5"})
    (tmp_path / "data.yaml").unlink()
    message = (
        f"{folder}: has no data.yaml with `names` of classes, here or above it. Add it, such as `names: [car, bus]`"
    )
    assert_user_error(lambda: open_objects(folder), message)


@pytest.mark.parametrize("names", [["cat", "dog"], {"0": "cat", "1": "dog"}])
def test_names_are_a_list_or_a_mapping(tmp_path: Path, names: object) -> None:
    scenes = open_objects(write_yolo(tmp_path, {"a": "1 .5 .5 .5 .5"}, names=names))
    assert [entry.name for entry in scenes.info.object_classes] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"0": "cat", "2": "dog"}, "`names` has the classes 0, 2 (expected 0, 1, …). Number them so"),
        ([], "`names` has no names (expected a list, or 0: name, 1: name, …). Add them"),
        ("cat", "`names` has no names (expected a list, or 0: name, 1: name, …). Add them"),
        (["a", None], "name 1 of `names` is null (expected text). Write it in quotes"),
    ],
)
def test_unusable_names_are_an_error(tmp_path: Path, names: object, message: str) -> None:
    folder = write_yolo(tmp_path, {"a": "1 .5 .5 .5 .5"}, names=names)
    assert_user_error(lambda: open_objects(folder), f"{tmp_path}/data.yaml: {message}")


def test_names_that_yaml_reads_as_booleans_are_an_error(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path, {"a": "1 .5 .5 .5 .5"})
    (tmp_path / "data.yaml").write_text("names: [yes, no]")
    message = "name 0 of `names` is true (expected text), which yes, no, on and off mean in YAML. Write it in quotes"
    assert_user_error(lambda: open_objects(folder), f"{tmp_path}/data.yaml: {message}")
    (tmp_path / "data.yaml").write_text("names: ['yes', 'no', 3]")
    assert [entry.name for entry in open_objects(folder).info.object_classes] == ["yes", "no", "3"]


def test_text_files_without_an_image_are_problems(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path, {"a": "0 .5 .5 .5 .5"})
    for name, text in (("b", "1 .5 .5 .5 .5"), ("c/d", "1 .1 .1 .2 .2 .3 .1"), ("classes", "cat\ndog"), ("e", "")):
        path = tmp_path / f"labels/val/{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    scenes, problems = inspect_objects(folder)
    assert scenes is not None
    assert list(scenes.keys) == ["a"]
    assert [problem.key for problem in problems] == ["b", "c/d"]
    assert problems[0].text == (
        f"{tmp_path}/labels/val/b.txt: has objects, but {folder}/b is not an image. Add it, or remove the text file"
    )
