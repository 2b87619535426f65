import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from c2fmae.core.errors import UserError
from c2fmae.data.importers import CocoInstances, CocoPanoptic
from c2fmae.data.importers.coco import decode_panoptic_maps
from c2fmae.data.importers.coco_rle import outline_to_rle, paint_outlines
from c2fmae.data.label_spaces import COCO_PANOPTIC
from c2fmae.data.scenes import Scenes
from tests.data.dataset_files import assert_user_error, write_png

BLACK = np.zeros((4, 6, 3), np.uint8)
CATEGORIES = [{"id": entry.coco_id, "name": entry.name} for entry in COCO_PANOPTIC.classes]
THINGS = CATEGORIES[:80]
PERSON, TOOTHBRUSH, SNOW, RUG = 1, 90, 159, 200  # COCO's ids; the semantic ids are 0, 79, 105 and 132


def write_json(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def segment(number: int, category: int, crowd: int = 0) -> dict[str, int]:
    return {"id": number, "category_id": category, "iscrowd": crowd}


def panoptic(
    root: Path, *samples: tuple[np.ndarray, list[dict[str, int]]], image: np.ndarray = BLACK, **changes: Any
) -> Path:
    """Write COCO's layout with images 1.jpg, 2.jpg, …; `changes` replaces lists of the JSON."""
    images, annotations = [], []
    for number, (stored, segments) in enumerate(samples, start=1):
        write_png(root / f"val/{number}.jpg", image)
        colours = np.stack([stored >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
        write_png(root / f"annotations/panoptic_val/{number}.png", colours)
        images.append({"id": 10 * number, "file_name": f"{number}.jpg"})
        annotations.append({"image_id": 10 * number, "file_name": f"{number}.png", "segments_info": segments})
    tables = {"images": images, "annotations": annotations, "categories": CATEGORIES} | changes
    write_json(root / "annotations/panoptic_val.json", tables)
    return root


def thing(number: int, outline: object, category: int = PERSON, crowd: int = 0, image: int = 7) -> dict[str, object]:
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd, "segmentation": outline}


def instances(root: Path, *annotations: dict[str, object], size: tuple[int, int] = (4, 6), **changes: Any) -> Path:
    write_png(root / "val/a.jpg", np.zeros((*size, 3), np.uint8))
    images = [{"id": 7, "file_name": "a.jpg", "height": size[0], "width": size[1]}]
    tables = {"images": images, "annotations": list(annotations), "categories": THINGS} | changes
    write_json(root / "annotations/instances_val.json", tables)
    return root


def box(left: int, top: int, width: int, height: int) -> list[list[int]]:
    """Return a polygon around exactly these pixels."""
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def rows(*lines: Iterable[int]) -> list[list[int]]:
    return [list(line) for line in lines]


# Panoptic


def test_a_panoptic_map_is_split_into_classes_and_objects(tmp_path: Path) -> None:
    stored = np.array(
        [
            [0, 70_000, 70_000, 5, 5, 5],
            [0, 70_000, 70_000, 5, 5, 5],
            [9, 9, 9, 9, 16_777_215, 16_777_215],
            [3, 3, 3, 3, 3, 3],
        ]
    )
    # Sorted neither by id nor by category: objects are numbered in the order of the list.
    segments = [
        segment(70_000, TOOTHBRUSH),
        segment(9, SNOW),
        segment(5, PERSON),
        segment(16_777_215, PERSON),
        segment(3, PERSON, crowd=1),
    ]
    image = np.random.default_rng(0).integers(256, size=(4, 6, 3), dtype=np.uint8)
    scenes = CocoPanoptic(panoptic(tmp_path, (stored, segments), image=image), "val")
    scene = scenes[0]
    assert list(scene.maps) == ["semantic", "instance", "rgb"]
    assert scene.maps["semantic"].tolist() == rows(
        [255, 79, 79, 0, 0, 0], [255, 79, 79, 0, 0, 0], [105, 105, 105, 105, 0, 0], [0] * 6
    )
    assert scene.maps["instance"].tolist() == rows(
        [255, 1, 1, 2, 2, 2], [255, 1, 1, 2, 2, 2], [0, 0, 0, 0, 3, 3], [255] * 6
    )
    assert torch.equal(scene.maps["rgb"], torch.from_numpy(image).permute(2, 0, 1))
    assert all(ids.dtype == torch.uint8 for ids in scene.maps.values())
    assert (scene.key, scene.label, scene.label_stride) == ("1", None, 1)
    assert scenes.read_image_bytes(0) == (tmp_path / "val/1.jpg").read_bytes()


def test_panoptic_scenes_have_the_classes_of_coco(tmp_path: Path) -> None:
    scenes = CocoPanoptic(panoptic(tmp_path, (np.full((4, 6), 1), [segment(1, RUG)])), "val")
    assert isinstance(scenes, Scenes)
    assert scenes.info.name == "coco-panoptic"
    assert scenes.info.classes == COCO_PANOPTIC.classes
    assert scenes.info.granularities == ("semantic", "instance", "rgb")
    assert scenes.info.class_names[int(scenes[0].maps["semantic"][0, 0])] == "rug-merged"


def test_images_are_in_the_order_of_the_list_without_unannotated_ones(tmp_path: Path) -> None:
    samples = [(np.full((4, 6), number), [segment(number, number)]) for number in (1, 2, 3)]
    root = panoptic(tmp_path, *samples)
    document = json.loads((root / "annotations/panoptic_val.json").read_text())
    document["images"] = [*document["images"][::-1], {"id": 99, "file_name": "unseen.jpg"}]
    document["annotations"] = [document["annotations"][2], document["annotations"][0]]
    write_json(root / "annotations/panoptic_val.json", document)
    scenes = CocoPanoptic(root, "val")
    assert scenes.keys == ("3", "1")
    assert len(scenes) == 2
    assert [scenes[index].maps["semantic"][0, 0] for index in range(2)] == [2, 0]


def test_a_panoptic_map_without_segments_is_unlabelled(tmp_path: Path) -> None:
    scene = CocoPanoptic(panoptic(tmp_path, (np.zeros((4, 6), int), [])), "val")[0]
    assert (scene.maps["semantic"] == 255).all()
    assert (scene.maps["instance"] == 255).all()


def test_300_objects_in_one_image_have_distinct_ids(tmp_path: Path) -> None:
    stored = np.arange(1, 301).reshape(15, 20) * 100  # more than one byte
    segments = [segment(100 * number, PERSON) for number in range(1, 301)]
    root = panoptic(tmp_path, (stored, segments), image=np.zeros((15, 20, 3), np.uint8))
    ids = CocoPanoptic(root, "val")[0].maps["instance"]
    assert ids.dtype == torch.int32
    assert ids.flatten().tolist() == [*range(1, 255), 65535, *range(256, 301)]


def test_up_to_254_objects_have_8_bits(tmp_path: Path) -> None:
    stored = np.arange(1, 255).reshape(2, 127)
    root = panoptic(
        tmp_path, (stored, [segment(n, PERSON) for n in range(1, 255)]), image=np.zeros((2, 127, 3), np.uint8)
    )
    ids = CocoPanoptic(root, "val")[0].maps["instance"]
    assert (ids.dtype, ids.flatten().tolist()) == (torch.uint8, [*range(1, 255)])


SEGMENT = st.tuples(st.sampled_from([1, 255, 256, 65_535, 65_536, 70_000, 16_777_215]), st.sampled_from(CATEGORIES))


@given(st.data())
def test_panoptic_maps_equal_those_of_a_loop_over_segments(data: st.DataObject) -> None:
    drawn = data.draw(st.lists(SEGMENT, max_size=6, unique_by=lambda pair: pair[0]))
    ids, categories = [pair[0] for pair in drawn], [int(str(pair[1]["id"])) for pair in drawn]
    crowds = [data.draw(st.booleans()) for _ in drawn]
    stored = data.draw(arrays(np.int64, (3, 5), elements=st.sampled_from([0, *ids])))
    stored.flat[: len(ids)] = ids  # every segment has a pixel
    semantic, instance = np.full((3, 5), 255), np.full((3, 5), 255)
    count = 0
    for number, category, is_crowd in zip(ids, categories, crowds, strict=True):
        class_id = [entry["id"] for entry in CATEGORIES].index(category)
        is_object = class_id < 80 and not is_crowd
        count += is_object
        semantic[stored == number] = class_id
        instance[stored == number] = count if is_object else 255 if is_crowd else 0
    columns = (np.array(ids, np.int64), np.array(categories, np.int64), np.array(crowds, bool))
    maps = decode_panoptic_maps(stored, *columns, png="x.png", listing="x.json")
    assert np.array_equal(maps["semantic"].ids, semantic)
    assert np.array_equal(maps["instance"].ids, instance)


# Instances


def test_smaller_objects_are_on_top_and_numbered_in_the_order_of_the_list(tmp_path: Path) -> None:
    annotations = [
        thing(1, box(1, 1, 2, 1), TOOTHBRUSH),
        thing(2, box(0, 0, 4, 4)),
        thing(3, {"size": [4, 6], "counts": [16, 8]}, crowd=1),
    ]
    scene = CocoInstances(instances(tmp_path, *annotations), "val")[0]
    assert scene.maps["semantic"].tolist() == rows([0] * 6, [0, 79, 79, 0, 0, 0], [0] * 6, [0] * 6)
    plain = [2, 2, 2, 2, 255, 255]
    assert scene.maps["instance"].tolist() == rows(plain, [2, 1, 1, 2, 255, 255], plain, plain)
    assert all(scene.maps[name].dtype == torch.uint8 for name in ("semantic", "instance"))
    assert all(scene.maps[name].is_contiguous() for name in ("semantic", "instance"))
    assert scene.key == "a"


def test_of_equal_objects_the_later_one_is_on_top_and_hidden_numbers_are_unused(tmp_path: Path) -> None:
    annotations = [thing(number, box(0, 0, 2, 2)) for number in (1, 2)] + [thing(3, box(4, 0, 1, 1))]
    scene = CocoInstances(instances(tmp_path, *annotations), "val")[0]
    assert scene.maps["instance"].tolist() == rows([2, 2, 0, 0, 3, 0], [2, 2, 0, 0, 0, 0], [0] * 6, [0] * 6)


def test_an_image_without_objects_is_a_scene(tmp_path: Path) -> None:
    scenes = CocoInstances(instances(tmp_path), "val")
    assert (scenes[0].maps["semantic"] == 255).all()
    assert (scenes[0].maps["instance"] == 0).all()
    assert scenes.info.name == "coco-instances"
    assert scenes.info.classes == COCO_PANOPTIC.classes
    assert isinstance(scenes, Scenes)


def test_annotations_are_matched_to_their_image_in_any_order(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 4, "width": 6} for number in (3, 1, 2)]
    annotations = [
        thing(5, box(0, 0, 1, 1), image=1),
        thing(6, box(0, 0, 3, 1), TOOTHBRUSH, crowd=1, image=3),
        thing(7, box(5, 0, 1, 1), TOOTHBRUSH, image=1),
    ]
    root = instances(tmp_path, *annotations, images=images)
    for number in (1, 2, 3):
        write_png(root / f"val/{number}.jpg", BLACK)
    scenes = CocoInstances(root, "val")
    assert scenes.keys == ("3", "1", "2")
    maps = [scenes[index].maps for index in range(3)]
    assert [scene_maps["semantic"][0].tolist() for scene_maps in maps] == rows(
        [79, 79, 79, 255, 255, 255], [0, 255, 255, 255, 255, 79], [255] * 6
    )
    assert [scene_maps["instance"][0].tolist() for scene_maps in maps] == rows(
        [255, 255, 255, 0, 0, 0], [1, 0, 0, 0, 0, 2], [0] * 6
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools with NumPy 2
def test_all_types_of_outlines_equal_those_of_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools import mask  # type: ignore[import-untyped]
    from pycocotools.coco import COCO  # type: ignore[import-untyped]

    height, width = 60, 80
    rng = np.random.default_rng(0)
    blob = np.asfortranarray(rng.random((height, width)) < 0.02)
    blob[:, :60] = False
    packed = mask.encode(blob.astype(np.uint8))
    runs = np.zeros((height, width), bool)
    runs[40:55, 3:30] = True
    flat = runs.ravel(order="F")
    counts = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])).tolist()
    annotations = [
        thing(1, [[3.2, 4.7, 20.1, 6.3, 11.5, 18.9], [22.5, 2.0, 30.25, 2.5, 30.0, 12.75, 21.1, 9.4]]),
        thing(2, {"size": [height, width], "counts": packed["counts"].decode()}, TOOTHBRUSH),
        thing(3, {"size": [height, width], "counts": counts}, crowd=1),
        thing(4, [[35.5, 30.5, 50.0, 31.0, 42.0, 55.5]]),
    ]
    root = instances(tmp_path, *annotations, size=(height, width))
    coco = COCO(root / "annotations/instances_val.json")
    capsys.readouterr()  # it prints
    masks = [coco.annToMask(coco.anns[number]) == 1 for number in (1, 2, 3, 4)]
    assert all(painted.any() for painted in masks)
    assert sum(painted.astype(int) for painted in masks).max() == 1  # they do not overlap
    maps = CocoInstances(root, "val")[0].maps
    for painted, new_id, semantic in zip(masks, (1, 2, 255, 3), (0, 79, 0, 0), strict=True):
        assert np.array_equal(maps["instance"].numpy() == new_id, painted)
        assert (maps["semantic"].numpy()[painted] == semantic).all()
    assert (maps["instance"].numpy()[~np.logical_or.reduce(masks)] == 0).all()


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 300)), fill=st.booleans()))
def test_compressed_runs_equal_those_of_pycocotools(shape: np.ndarray) -> None:
    from pycocotools import mask

    height, width = shape.shape
    packed = mask.encode(np.asfortranarray(shape, np.uint8))["counts"].decode()
    outline = outline_to_rle({"counts": packed}, (height, width), "x")
    assert np.array_equal(paint_outlines([outline], (height, width)) == 1, shape)


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 2, *[st.integers(1, 4)] * 2), max_size=6))
def test_painting_equals_a_loop_from_large_to_small(boxes: list[tuple[int, int, int, int]]) -> None:
    owner = np.zeros((8, 8), int)
    for k, (left, top, width, height) in sorted(enumerate(boxes), key=lambda entry: -entry[1][2] * entry[1][3]):
        owner[top : top + height, left : left + width] = k + 1
    outlines = [outline_to_rle(box(*sides), (8, 8), "x") for sides in boxes]
    assert np.array_equal(paint_outlines(outlines, (8, 8)), owner)


def test_300_overlapping_objects_have_distinct_ids(tmp_path: Path) -> None:
    # Each covers a corner of the one before it, of which a rim stays visible.
    annotations = [thing(number, box(0, 0, 301 - number, 2)) for number in range(1, 301)]
    ids = CocoInstances(instances(tmp_path, *annotations, size=(2, 300)), "val")[0].maps["instance"]
    assert ids.dtype == torch.int32
    assert ids[0].tolist() == [*range(1, 255), 65535, *range(256, 301)][::-1]


# Both


@pytest.mark.parametrize("kind", [CocoPanoptic, CocoInstances])
def test_scenes_can_be_pickled(tmp_path: Path, kind: type[CocoPanoptic | CocoInstances]) -> None:
    panoptic(tmp_path, (np.full((4, 6), 1), [segment(1, RUG)]))
    instances(tmp_path, thing(1, box(0, 0, 2, 2)))
    scenes = kind(tmp_path, "val")
    scenes[0]
    copy = pickle.loads(pickle.dumps(scenes))
    assert copy.keys == scenes.keys
    assert all(torch.equal(copy[0].maps[name], ids) for name, ids in scenes[0].maps.items())
    assert len(pickle.dumps(scenes)) < 20_000  # mostly the 133 classes


@pytest.mark.parametrize("index", [-1, 1])
def test_an_index_out_of_range_is_an_index_error(tmp_path: Path, index: int) -> None:
    scenes = CocoInstances(instances(tmp_path), "val")
    for action in (scenes.__getitem__, scenes.read_image_bytes):
        with pytest.raises(IndexError, match=f"^scene {index} of 1$"):
            action(index)


# Errors


def test_ids_of_no_segment_are_refused(tmp_path: Path) -> None:
    stored = np.full((4, 6), 1)
    stored[0] = [70_000, 70_000, 2, 1, 1, 1]
    root = panoptic(tmp_path, (stored, [segment(1, PERSON)]))
    assert_user_error(
        lambda: CocoPanoptic(root, "val")[0],
        f"{root}/annotations/panoptic_val/1.png: id 70000 on 2 pixels (and 1 more id) is not in the `segments_info`"
        f" of {root}/annotations/panoptic_val.json. Extract both from the same release",
    )


@pytest.mark.parametrize(("extra", "others"), [([9], ""), ([9, 1], " (1 more have none either)")])
def test_segments_without_pixels_are_refused(tmp_path: Path, extra: list[int], others: str) -> None:
    segments = [segment(number, PERSON) for number in [*extra, 5]]
    root = panoptic(tmp_path, (np.full((4, 6), 5), segments))
    assert_user_error(
        lambda: CocoPanoptic(root, "val")[0],
        f"{root}/annotations/panoptic_val/1.png: segment {min(extra)} of {root}/annotations/panoptic_val.json has no"
        f" pixels{others}. Extract both from the same release",
    )


def test_an_image_of_another_size_than_its_panoptic_map_is_refused(tmp_path: Path) -> None:
    root = panoptic(tmp_path, (np.full((5, 6), 1), [segment(1, PERSON)]))
    assert_user_error(
        lambda: CocoPanoptic(root, "val")[0],
        f"{root}/annotations/panoptic_val/1.png: has 6×5 pixels, but {root}/val/1.jpg has 6×4."
        " Replace the one that is not from the official release",
    )


def test_an_image_of_another_size_than_listed_is_refused(tmp_path: Path) -> None:
    root = instances(tmp_path)
    write_png(root / "val/a.jpg", np.zeros((6, 4, 3), np.uint8))
    assert_user_error(
        lambda: CocoInstances(root, "val")[0],
        f"{root}/annotations/instances_val.json: image a.jpg: has 6×4 pixels, but {root}/val/a.jpg has 4×6."
        " Replace the one that is not from the official release",
    )


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    root = instances(tmp_path)
    (root / "val/a.jpg").unlink()
    assert_user_error(
        lambda: CocoInstances(root, "val")[0],
        f"{root}/val/a.jpg: cannot be read: No such file or directory. Check the path, or restore the file",
    )


def test_a_broken_panoptic_map_is_named(tmp_path: Path) -> None:
    root = panoptic(tmp_path, (np.full((4, 6), 1), [segment(1, PERSON)]))
    (root / "annotations/panoptic_val/1.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=f"^{root}/annotations/panoptic_val/1.png: cannot be decoded"):
        CocoPanoptic(root, "val")[0]


def test_missing_directories_and_splits_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert_user_error(
        lambda: CocoPanoptic(missing, "val"), f"{missing}: does not exist (expected a directory). Check the path"
    )
    assert_user_error(
        lambda: CocoPanoptic(tmp_path, "val"),
        f"{tmp_path}: contains no annotations/panoptic_*.json. Give the root directory of the official release",
    )
    for split in ("train2017", "val2017"):
        write_json(tmp_path / f"annotations/panoptic_{split}.json", {})
    assert_user_error(
        lambda: CocoPanoptic(tmp_path, "val"),
        f"{tmp_path}: no split named 'val'. Did you mean 'val2017'? Known: train2017, val2017",
    )
    assert_user_error(
        lambda: CocoInstances(tmp_path, "val2017"),
        f"{tmp_path}: contains no annotations/instances_*.json. Give the root directory of the official release",
    )
    assert_user_error(
        lambda: CocoPanoptic(tmp_path, "val2017"),
        f"{tmp_path}/val2017: does not exist (expected a directory). Extract val2017.zip there",
    )
    (tmp_path / "val2017").mkdir()
    assert_user_error(
        lambda: CocoPanoptic(tmp_path, "val2017"),
        f"{tmp_path}/annotations/panoptic_val2017: does not exist (expected a directory). Extract "
        "panoptic_val2017.zip there",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "{",
            "is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)). Extract it "
            "from the official release again",
        ),
        ("[]", "expected a JSON object, got a list. Extract it from the official release again"),
        ("{}", "has no list 'categories'. Use a file in COCO's format"),
    ],
)
def test_a_file_that_is_not_coco_json_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = instances(tmp_path) / "annotations/instances_val.json"
    path.write_text(text)
    assert_user_error(lambda: CocoInstances(tmp_path, "val"), f"{path}: {problem}")


GOOD = thing(5, box(0, 0, 1, 1))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"images": [{"id": 7, "file_name": "a.jpg", "height": "4", "width": 6}]},
            "images[0] has no 'height' of type int. Fix or remove it",
        ),
        ({"images": [7]}, "images[0] has no 'id' of type int. Fix or remove it"),
        (
            {"annotations": [GOOD, {"id": 6, "image_id": 7}]},
            "annotations[1] has no 'segmentation' of type list or dict. Fix or remove it",
        ),
        (
            {"annotations": [GOOD | {"image_id": 8}]},
            "an annotation has image_id 8, which is not in `images`. Fix or remove it",
        ),
        (
            {"annotations": [GOOD | {"category_id": 12}, GOOD | {"category_id": 12}]},
            "category 12 of 2 annotations is not one of the 80 categories of COCO. Use the file of the official"
            " release",
        ),
        (
            {"categories": [{"id": 1, "name": "cell"}]},
            "category 1 is 'cell', but that id means 'person' in COCO. Import data with other classes as a"
            " directory tree",
        ),
        (
            {"categories": [{"id": 0, "name": "cell"}]},
            "category 0 is 'cell', but that id is not used in COCO. Import data with other classes as a directory tree",
        ),
        ({"images": [], "annotations": []}, "lists no scenes. Check that it is complete"),
        (
            {"images": [{"id": n, "file_name": "x/a.jpg", "height": 4, "width": 6} for n in (7, 8)]},
            "lists sample 'a' 2 times. Remove all but one",
        ),
        (
            {"images": [{"id": 7, "file_name": name, "height": 4, "width": 6} for name in ("a.jpg", "b.jpg")]},
            "2 images have 1 distinct ids. Use the file of the official release",
        ),
    ],
)
def test_invalid_lists_are_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    root = instances(tmp_path, **changes)
    assert_user_error(lambda: CocoInstances(root, "val"), f"{root}/annotations/instances_val.json: {problem}")


def test_segments_of_an_unknown_category_are_refused(tmp_path: Path) -> None:
    root = panoptic(tmp_path, (np.full((4, 6), 1), [segment(1, 26)]))
    assert_user_error(
        lambda: CocoPanoptic(root, "val"),
        f"{root}/annotations/panoptic_val.json: category 26 of 1 segments is not one of the 133 categories of COCO."
        " Use the file of the official release",
    )


def test_invalid_segments_are_numbered_over_all_images(tmp_path: Path) -> None:
    samples = [(np.full((4, 6), 1), [segment(1, PERSON)]), (np.full((4, 6), 1), [{"category_id": 1, "iscrowd": 0}])]
    root = panoptic(tmp_path, *samples)
    assert_user_error(
        lambda: CocoPanoptic(root, "val"),
        f"{root}/annotations/panoptic_val.json: all segments_info[1] has no 'id' of type int. Fix or remove it",
    )


@pytest.mark.parametrize(
    ("outline", "problem"),
    [
        ([], "a polygon needs x and y of at least 3 points"),
        ([[0, 0, 1, 1]], "a polygon needs x and y of at least 3 points"),
        ([[0, 0, 1, 1, 2, 1e9]], "a polygon has points far outside of the image"),  # would be walked along for hours
        ([[0, 0, 1, 1, 2, float("nan")]], "a polygon has points far outside of the image"),
        ([[0, 0, 1, 1, 2, 2, 3]], "a polygon needs x and y of at least 3 points"),
        ({"counts": [3, 2]}, "its runs cover 5 pixels, expected 6×4"),
        ({"counts": []}, "its runs cover 0 pixels, expected 6×4"),
        ({"counts": "32"}, "its runs cover 5 pixels, expected 6×4"),
        ({"counts": "`"}, "its compressed runs are truncated or corrupted"),
        ({"counts": "~~"}, "its compressed runs are truncated or corrupted"),
        ({}, "'counts'"),
    ],
)
def test_invalid_outlines_are_refused(tmp_path: Path, outline: object, problem: str) -> None:
    root = instances(tmp_path, thing(5, outline))
    assert_user_error(
        lambda: CocoInstances(root, "val"),
        f"{root}/annotations/instances_val.json: annotation 5: is not an outline ({problem}). Fix or remove it",
    )
