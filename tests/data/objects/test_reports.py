from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c2fmae.config.data import DatasetConfig
from c2fmae.data.check import CheckReport, check_dataset, describe_object_notes, format_object_table
from c2fmae.data.objects import inspect_maps_and_objects, open_objects
from c2fmae.data.preview import draw_preview
from c2fmae.data.stats import describe_stats, draw_stats
from c2fmae.report.drawing import DrawnObject, Tile, draw_objects
from tests.data.objects.layouts import annotation, write_coco, write_yolo

ENTRIES = [
    annotation(1, 10, 3, (2, 4, 10, 8)),
    annotation(2, 10, 3, (0, 0, 3, 3)),
    annotation(3, 10, 90, (1, 1, 4, 0)),  # no area
    annotation(4, 20, 3, (0, 0, 30, 20), iscrowd=1),
    annotation(5, 30, 90, (28, 15, 9, 9), area=5000.0),
    annotation(6, 30, 90, (35, 5, 9, 9)),  # outside
]


def check(path: Path) -> CheckReport:
    return check_dataset(*inspect_maps_and_objects(path))


def test_a_check_counts_annotated_objects(tmp_path: Path) -> None:
    report = check(write_coco(tmp_path, ENTRIES, num_images=4))
    assert (report.problems, report.num_scenes) == ((), 4)
    assert report.object_counts == {0: 2, 2: 1, 3: 1}
    assert report.num_objects == 5
    assert report.object_area_counts.sum() == 5
    assert format_object_table(report).splitlines() == [
        "label  class   objects   images   crowds",
        "    0  cat           3        2        0",
        "    1  dog           2        1        1",
        "    2  cow           0        0        0",
    ]
    assert describe_object_notes(report) == [
        "1 class has no object: cow",
        "2 images have no object that is no crowd",
        "2 objects have no area or no pixel in the image: a training leaves them out, an evaluation counts them",
    ]
    assert "sizes    4 small (below 32² pixels), 1 medium, 0 large (from 96²), and 1 crowd" in describe_stats(report)
    assert draw_stats(report).size[0] > 0


def test_an_invalid_annotation_is_reported_with_all_others(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [*ENTRIES, annotation(9, 20, 4, (0, 0, 1, 1))], num_images=4)
    (tmp_path / "val/4.jpg").write_bytes(b"")
    report = check(path)
    assert [problem.key for problem in report.problems] == ["2", "4"]
    assert report.valid_keys == ("1", "3")


def test_generated_maps_are_checked_as_maps() -> None:
    report = check_dataset(
        *inspect_maps_and_objects(DatasetConfig(name="generated", options={"size": 32, "length": 2}))
    )
    assert report.annotated is None
    assert format_object_table(report) == ""
    assert describe_object_notes(report) == []
    assert report.num_objects > 0


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[DrawnObject]]:
    """Record the objects of each image that is drawn."""
    recorded: list[list[DrawnObject]] = []

    def record(image: Tile, objects: list[DrawnObject]) -> Tile:
        recorded.append(objects)
        return draw_objects(image, objects)

    monkeypatch.setattr("c2fmae.data.preview.draw_objects", record)
    return recorded


def test_a_preview_draws_boxes_and_masks_at_the_size_of_tiles(tmp_path: Path, drawn: list[list[DrawnObject]]) -> None:
    page = draw_preview(open_objects(write_coco(tmp_path, ENTRIES, num_images=3)), 3, title="title")
    assert isinstance(page, Image.Image)
    first, crowd, clipped = drawn
    scale = 256 / 30
    boxes = np.array([each.box for each in first])
    assert boxes == pytest.approx(np.array([[2, 4, 12, 12], [0, 0, 3, 3]]) * scale, abs=1)  # the largest first
    assert all(each.mask is not None and each.mask.shape == (170, 256) for each in first)
    assert (len(crowd), len(clipped)) == (1, 1)
    assert first[0].colour == first[1].colour == crowd[0].colour != clipped[0].colour


def test_a_preview_draws_boxes_without_masks(tmp_path: Path, drawn: list[list[DrawnObject]]) -> None:
    folder = write_yolo(tmp_path, {"a": "0 .5 .5 .5 .5", "b": None})
    draw_preview(open_objects(folder), 2, title="title")
    assert [[each.mask for each in objects] for objects in drawn] == [[None], []]
