import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

from c2fmae.core.errors import UserError
from c2fmae.core.objects import Objects
from c2fmae.core.rle import decode_mask
from c2fmae.data.combine import SubsetScenes
from c2fmae.data.objects import count_objects, inspect_objects, open_objects, select_with_objects
from c2fmae.data.problems import Problem
from tests.data.dataset_files import assert_user_error, write_png
from tests.data.objects.layouts import SIZE, Json, annotation, rectangle, write_coco

NAN = float("nan")


def objects_of(path: Path, index: int = 0, *, masks: bool = True) -> Objects:
    objects = open_objects(path, masks=masks)[index].objects
    assert objects is not None
    return objects


def masks_of(objects: Objects) -> list[np.ndarray]:
    assert objects.masks is not None
    return [decode_mask(counts, *SIZE) for counts in objects.masks]


def only_problem(path: Path, *, masks: bool = True) -> Problem:
    _, problems = inspect_objects(path, masks=masks)
    (problem,) = problems
    return problem


def test_categories_with_holes_get_labels_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = write_coco(
        tmp_path,
        [
            annotation(5, 20, 7, (4, 2, 10, 5)),
            annotation(9, 10, 90, (0, 0, 3, 4)),
            annotation(7, 20, 3, (1.5, 1.5, 20, 10), area=150.5),
        ],
    )
    scenes = pickle.loads(pickle.dumps(open_objects(path)))
    assert [(entry.name, entry.coco_id) for entry in scenes.info.object_classes] == [
        ("cat", 90),
        ("dog", 3),
        ("cow", 7),
    ]
    assert (list(scenes.keys), scenes.info.name, scenes.info.granularities) == (["1", "2"], "instances_val", ("rgb",))
    assert tuple(scenes[1].maps["rgb"].shape) == (3, *SIZE)
    assert scenes.read_image_bytes(1) == (tmp_path / "val/2.jpg").read_bytes()
    objects = scenes[1].objects
    assert objects.boxes.tolist() == [[4, 2, 14, 7], [1.5, 1.5, 21.5, 11.5]]
    assert objects.labels.tolist() == [2, 1]
    assert objects.ids.tolist() == [5, 7]
    assert objects.areas.tolist() == [50, 150.5]
    assert objects.is_crowd.tolist() == [False, False]
    assert masks_of(objects)[0].nonzero()[0].tolist() == [row for row in range(2, 7) for _ in range(10)]
    assert scenes[0].objects.labels.tolist() == [0]


def test_every_kind_of_segmentation_is_read_as_by_pycocotools(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = (rng.random(SIZE) < 0.4).astype(np.uint8)
    packed = coco_mask.encode(np.asfortranarray(mask))["counts"]
    runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=2)), append=mask.size).tolist()
    runs = runs if mask[0, 0] == 0 else [0, *runs]
    star = [[3.5, 2.25, 25, 8.5, 2, 14.75, 14, 1, 16.5, 18.25], *rectangle(20, 12, 6, 6)]
    segmentations = [star, {"size": list(SIZE), "counts": runs}, {"size": list(SIZE), "counts": packed.decode()}]
    path = write_coco(
        tmp_path,
        [
            annotation(number, 10, 3, (0, 0, 30, 20), segmentation=segmentation, iscrowd=int(number == 2))
            for number, segmentation in enumerate(segmentations, start=1)
        ],
    )
    objects = objects_of(path)
    merged = coco_mask.merge(coco_mask.frPyObjects(star, *SIZE))["counts"]
    assert objects.masks == (merged, packed, packed)
    assert objects.is_crowd.tolist() == [False, True, False]


def test_boxes_and_areas_that_are_missing_are_those_of_the_masks(tmp_path: Path) -> None:
    entry = annotation(1, 10, 3, (0, 0, 0, 0), bbox=None, area=None, iscrowd=None, segmentation=rectangle(4, 2, 7, 5))
    objects = objects_of(write_coco(tmp_path, [entry]))
    assert objects.boxes.tolist() == [[4, 2, 11, 7]]
    assert objects.areas.tolist() == [35]


def test_data_without_segmentations_has_boxes_only(tmp_path: Path) -> None:
    entries = [
        annotation(1, 10, 3, (1, 2, 3, 4), segmentation=None, area=None),
        annotation(2, 20, 3, (0, 0, 1, 1), segmentation=[]),
    ]
    objects = objects_of(write_coco(tmp_path, entries))
    assert objects.masks is None
    assert objects.boxes.tolist() == [[1, 2, 4, 6]]
    assert objects.areas.tolist() == [12]


def test_masks_are_not_read_if_they_are_not_used(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotation(1, 10, 3, (1, 2, 3, 4), segmentation={"size": [1], "counts": "?"})])
    assert objects_of(path, masks=False).masks is None


def test_degenerate_objects_stay_as_they_are_in_the_file(tmp_path: Path) -> None:
    boxes = [(5, 5, 4, 0), (5, 5, 0, 0), (-8, -3, 5, 2), (40, 50, 6, 6), (28.5, 18, 4, 9)]
    entries = [annotation(number, 10, 3, box) for number, box in enumerate(boxes, start=1)]
    objects = objects_of(write_coco(tmp_path, entries))
    assert objects.boxes.tolist() == [[x, y, x + width, y + height] for x, y, width, height in boxes]
    assert [int(mask.sum()) for mask in masks_of(objects)] == [0, 0, 0, 0, 2]


def test_images_without_objects_with_crowds_and_with_300_objects_are_read(tmp_path: Path) -> None:
    tiny = [annotation(100 + number, 30, 3, (number % 30, number // 30, 1, 1)) for number in range(300)]
    path = write_coco(tmp_path, [annotation(1, 20, 3, (0, 0, 5, 5), iscrowd=1), *tiny], num_images=4)
    scenes = open_objects(path)
    assert [len(scenes[index].objects or ()) for index in range(4)] == [0, 1, 300, 0]
    assert scenes[3].objects is not None
    assert (scenes[3].objects.masks, tuple(scenes[3].objects.boxes.shape)) == ((), (0, 4))
    assert scenes[2].objects is not None
    assert [int(mask.sum()) for mask in masks_of(scenes[2].objects)] == [1] * 300
    counts = count_objects(scenes)
    assert counts is not None
    assert counts.tolist() == [0, 0, 300, 0]
    assert list(select_with_objects(scenes).keys) == ["3"]
    some = SubsetScenes(scenes, np.array([3, 2]))
    assert list(select_with_objects(some).keys) == ["3"]


@pytest.mark.parametrize("ids", [[1, 1], [None, 1], [None, None], ["a", "b"], [2**70, 1]])
def test_missing_and_repeated_ids_are_replaced_by_the_order(tmp_path: Path, ids: list[object]) -> None:
    entries = [annotation(0, 10, 3, (number, 0, 2, 2), id=id_) for number, id_ in enumerate(ids)]
    objects = objects_of(write_coco(tmp_path, entries))
    assert objects.ids.tolist() == [1, 2]


def test_annotations_of_images_that_are_not_listed_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_coco(
        tmp_path, [annotation(number, 990, 3, (0, 0, 1, 1)) for number in (1, 2)] + [annotation(3, 10, 3, (0, 0, 2, 2))]
    )
    assert len(objects_of(path)) == 1
    assert caplog.messages == [
        f"{path}: 2 annotations are left out, since their images are not listed (for example image_id 990)"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [1, 2, NAN, 4]}, "bbox is [1, 2, nan, 4] (expected [x, y, width, height] as finite numbers). Fix or"),
        ({"bbox": [1, 2, 10**400, 4]}, "bbox is"),
        ({"bbox": [1, 2, 3]}, "bbox is [1, 2, 3] (expected"),
        ({"bbox": "1 2 3 4"}, "bbox is '1 2 3 4' (expected"),
        ({"bbox": [5, 5, -2, 3]}, "bbox [5, 5, -2, 3] has a negative width or height. Fix or remove it"),
        ({"area": NAN}, "area is nan (expected a number of pixels). Fix or remove it"),
        ({"category_id": 4}, "category_id 4 is not in `categories`. Add it there, or fix it"),
        ({"segmentation": [[1, 1, 2, NAN, 3, 3]]}, "is not an outline (a polygon has points far outside of the image)"),
        ({"segmentation": [[1, 1, 2, 2]]}, "is not an outline (a polygon needs x and y of at least 3 points)"),
        ({"segmentation": {"size": [20, 30], "counts": "~~"}}, "is not an outline (its compressed runs are truncated"),
        ({"segmentation": {"size": [20, 30], "counts": [5, 5]}}, "is not an outline (its runs cover 10 pixels"),
        ({"segmentation": {"size": [20, 30]}}, "is not an outline ('counts')"),
        ({"segmentation": 1}, "is not an outline (1, expected a list of polygons or {size, counts})"),
        ({"segmentation": []}, "has no segmentation, but others have. Add it, or read boxes only: --boxes-only"),
    ],
)  # fmt: skip
def test_an_invalid_annotation_is_a_problem_of_its_image(tmp_path: Path, changes: Json, message: str) -> None:
    path = write_coco(tmp_path, [annotation(7, 20, 3, (0, 0, 9, 9), **changes), annotation(8, 10, 3, (0, 0, 9, 9))])
    problem = only_problem(path)
    assert problem.key == "2"
    assert problem.text.startswith(f"{path}: annotation 7: {message}")
    assert_user_error(lambda: open_objects(path), problem.text)
    scenes = open_objects(path, keys=["1"])
    assert list(scenes.keys) == ["1"]
    assert scenes[0].objects is not None
    assert scenes[0].objects.ids.tolist() == [8]


def test_an_image_that_does_not_exist_is_a_problem(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 1, 1)), annotation(2, 20, 3, (0, 0, 2, 2))])
    (tmp_path / "val/1.jpg").unlink()
    problem = only_problem(path)
    assert problem.key == "1"
    assert (
        problem.text
        == f"{tmp_path}/val/1.jpg: does not exist, but is listed in {path}. Add it, or remove it from the list"
    )
    scenes = open_objects(path, keys=["2"])
    assert scenes[0].objects is not None
    assert scenes[0].objects.boxes.tolist() == [[0, 0, 2, 2]]


def test_an_image_of_another_size_than_in_the_file_is_an_error(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 1, 1))])
    write_png(tmp_path / "val/1.jpg", np.zeros((8, 9, 3), np.uint8))
    message = f"{tmp_path}/val/1.jpg: has 9×8 pixels, but 30×20 in {path}. Replace the one that is wrong"
    assert_user_error(lambda: open_objects(path)[0], message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": []}, "lists no categories. Add them"),
        ({"categories": [{"id": 3, "name": "a"}] * 2}, "2 categories have the id 3. Give each its own"),
        ({"categories": [{"id": 3}]}, "categories[0] has no 'name' of type str. Fix or remove it"),
        ({"annotations": {}}, "has no list 'annotations'. Use a file in COCO's format"),
        ({"annotations": [4]}, "annotations[0] has no 'category_id' of type int. Fix or remove it"),
        ({"images": [{"id": 1, "file_name": "1.jpg"}] * 2}, "two images have the id 1. Give each its own"),
    ],
)
def test_an_unusable_file_is_an_error(tmp_path: Path, changes: Json, message: str) -> None:
    changes = dict(changes)
    path = write_coco(tmp_path, changes.pop("annotations", []), **changes)
    assert_user_error(lambda: open_objects(path), f"{path}: {message}")


def test_a_file_that_is_not_json_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1, 2")
    with pytest.raises(ValueError, match="a.json: is not JSON"):
        open_objects(path)


@pytest.mark.parametrize("folder", ["val", "images/val", "images", "annotations", "."])
def test_images_are_found_in_the_usual_directories(tmp_path: Path, folder: str) -> None:
    path = write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 1, 1))], num_images=1)
    image = (tmp_path / "val/1.jpg").read_bytes()
    (tmp_path / "val/1.jpg").unlink()
    (tmp_path / folder).mkdir(exist_ok=True, parents=True)
    (tmp_path / folder / "1.jpg").write_bytes(image)
    assert open_objects(path).read_image_bytes(0) == image


def test_images_that_are_nowhere_are_an_error(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [])
    (tmp_path / "val/1.jpg").unlink()
    (tmp_path / "val/2.jpg").unlink()
    with pytest.raises(ValueError, match=rf"its 2 images \('1.jpg', '2.jpg'\) are in none of {tmp_path}/val, "):
        open_objects(path)


def test_images_in_subdirectories_may_share_names(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 1, 1))])
    document = json.loads(path.read_text())
    for image, name in zip(document["images"], ("a/x.jpg", "b/x.jpg"), strict=True):
        write_png(tmp_path / "val" / name, np.zeros((*SIZE, 3), np.uint8))
        image["file_name"] = name
    path.write_text(json.dumps(document))
    assert list(open_objects(path).keys) == ["a/x", "b/x"]


def test_annotations_of_no_listed_image_are_an_error(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 1, 1)) | {"image_id": "10"}])
    message = "no annotation belongs to a listed image: image_id is '10', the first id of an image 10"
    assert_user_error(lambda: open_objects(path), f"{path}: {message}. Give images and annotations the same ids")


@pytest.mark.parametrize("counts", [[0, 600], "PT1"], ids=["list", "text"])
def test_run_lengths_of_another_size_are_a_problem(tmp_path: Path, counts: object) -> None:
    outline = {"size": [SIZE[1], SIZE[0]], "counts": counts}
    path = write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 1, 1), segmentation=outline)])
    with pytest.raises(UserError, match=r"its size is \[30, 20\], expected \[20, 30\]: the image's height and width"):
        open_objects(path)


def test_an_image_that_is_rotated_needs_annotations_of_the_upright_image(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 1, 1))])
    write_png(tmp_path / "val/1.jpg", np.zeros((SIZE[1], SIZE[0], 3), np.uint8))
    with pytest.raises(UserError, match=r"has 20×30 pixels, but 30×20 in .* must be those of the upright image"):
        open_objects(path)[0]


def test_a_json_is_found_from_its_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 1, 1))])
    monkeypatch.chdir(path.parent)
    assert len(open_objects(path.name)) == 2


def test_polygons_of_two_points_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    complete = rectangle(4, 2, 7, 5)
    entries = [annotation(1, 10, 3, (4, 2, 7, 5), segmentation=[[1, 1, 2, 2], *complete, [5, 5]])]
    path = write_coco(tmp_path, [*entries, annotation(2, 20, 3, (0, 0, 2, 2))])
    expected = coco_mask.merge(coco_mask.frPyObjects(complete, *SIZE))["counts"]
    assert objects_of(path).masks == (expected,)
    assert caplog.messages == [f"{path}: 2 polygons of fewer than 3 points are left out; their objects have others"]


def test_annotations_without_ids_are_named_by_their_position_in_the_file(tmp_path: Path) -> None:
    entries = [annotation(0, image, 3, (0, 0, 2, 2), id=None) for image in (20, 10, 20)]
    entries[2]["bbox"] = [1, 2, 3]
    path = write_coco(tmp_path, entries)
    assert only_problem(path).text.startswith(f"{path}: annotations[2]: bbox is [1, 2, 3] (expected")
    assert open_objects(path, keys=["1"])[0].objects.ids.tolist() == [2]  # type: ignore[union-attr]


def write_images(tmp_path: Path, **changes: object) -> Path:
    """Write three images with an object, the second with another entry in the json."""
    path = write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 1, 1))], num_images=3)
    document = json.loads(path.read_text())
    document["images"][1] |= changes
    path.write_text(json.dumps(document))
    return path


def test_whole_heights_and_widths_may_be_written_as_floats(tmp_path: Path) -> None:
    path = write_images(tmp_path, height=20.0, width=30.0)
    assert len(open_objects(path)[1].objects or ()) == 0


@pytest.mark.parametrize("height", [20.5, "20", None, 0, NAN, 10**400])
def test_an_invalid_height_is_a_problem_of_its_image(tmp_path: Path, height: object) -> None:
    path = write_images(tmp_path, height=height)
    problem = only_problem(path)
    text = f"{path}: images[1] has height {str(height)[:20]} and width 30 (expected numbers of pixels). Fix them"
    assert (problem.key, problem.text) == ("2", text)
    assert list(open_objects(path, keys=["1", "3"]).keys) == ["1", "3"]


@pytest.mark.parametrize("name", ["1.jpg", "1.png"])
def test_a_repeated_file_name_is_a_problem_of_its_images(tmp_path: Path, name: str) -> None:
    path = write_images(tmp_path, file_name=name)
    (tmp_path / "val/2.jpg").rename(tmp_path / "val" / name)
    problem = only_problem(path)
    text = f"{path}: images[0] and images[1] have the file_name '1.jpg' (suffixes do not count). Remove one"
    assert (problem.key, problem.text) == ("1", text)
    assert list(open_objects(path, keys=["3"]).keys) == ["3"]


def test_segmentations_without_sizes_of_images_are_an_error(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotation(1, 10, 3, (0, 0, 1, 1))], images=[{"id": 10, "file_name": "1.jpg"}])
    message = "has no height and width of images, which its segmentations need. Add them"
    assert_user_error(lambda: open_objects(path), f"{path}: {message}")
    assert len(open_objects(path, masks=False)[0].objects or ()) == 1


def test_images_are_found_although_the_first_ones_are_missing(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotation(1, 200, 3, (0, 0, 1, 1))], num_images=20)
    for number in range(1, 20):
        (tmp_path / f"val/{number}.jpg").unlink()
    scenes, problems = inspect_objects(path)
    assert scenes is not None
    assert (list(scenes.keys), len(problems)) == (["20"], 19)
