import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from c2fmae.core.crop_box import CropBox
from c2fmae.core.errors import UserError
from c2fmae.core.objects import Objects, measure_mask, resize_objects
from c2fmae.core.rle import encode_mask
from c2fmae.data.object_json import check_masks, decode_objects, encode_objects
from c2fmae.data.objects import count_objects, inspect_objects, open_objects
from c2fmae.data.pack import PackConfig, pack_scenes
from c2fmae.data.sources import inspect_scenes, open_scenes
from c2fmae.data.tar_index import INDEX_SUFFIX
from tests.data.dataset_files import write_tar
from tests.data.objects.layouts import SIZE, annotation, voc_object, write_coco, write_voc


def make_objects(*, has_masks: bool = True) -> Objects:
    rng = np.random.default_rng(0)
    masks = tuple(encode_mask((rng.random(SIZE) < 0.5).astype(np.uint8)) for _ in range(3))
    return Objects(
        torch.from_numpy(rng.random((3, 4), np.float32)) * 30,
        torch.tensor([2, 0, 1]),
        torch.tensor([False, True, False]),
        torch.tensor([0.1, 1e-7, 123456.789]),
        torch.tensor([1, 2**40, 0]),
        masks if has_masks else None,
        image_id=139 if has_masks else None,
    )


def assert_same(one: Objects | None, other: Objects | None) -> None:
    assert one is not None
    assert other is not None
    for name in ("boxes", "labels", "is_crowd", "areas", "ids"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert (one.masks, one.image_id) == (other.masks, other.image_id)


@pytest.mark.parametrize(
    "objects",
    [make_objects(), make_objects(has_masks=False), Objects.empty(has_masks=True), Objects.empty(has_masks=False)],
)
def test_objects_are_stored_to_the_last_bit(objects: Objects) -> None:
    data = encode_objects(objects)
    assert_same(decode_objects(data, 3, "x"), objects)
    assert encode_objects(decode_objects(data, 3, "x")) == data
    assert decode_objects(data, 3, "x", masks=False).masks is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": "139"}, "image_id is 139 (expected an integer)"),
        ({"boxes": 4}, "has no list 'boxes'"),
        ({"boxes": [[1, 2, 3]]}, "boxes[0] is invalid (got [1, 2, 3])"),
        ({"boxes": [[1, 2, 3, float("nan")]]}, "boxes[0] is invalid (got [1, 2, 3, nan])"),
        ({"boxes": [[1, 2, 3, 10**400]]}, "boxes[0] is invalid"),
        ({"labels": [3, 0, 0]}, "labels[0] is invalid (got 3)"),
        ({"labels": [0, 0]}, "has 3 boxes, but 2 labels"),
        ({"is_crowd": [0, 0, 0]}, "is_crowd[0] is invalid (got 0)"),
        ({"ids": [2**64, 0, 0]}, "ids[0] is invalid"),
        ({"masks": ["é", "", ""]}, "masks[0] is invalid (got é)"),
    ],
)
def test_invalid_objects_are_an_error(changes: dict[str, object], message: str) -> None:
    document = json.loads(encode_objects(make_objects())) | changes
    with pytest.raises(UserError) as caught:
        decode_objects(json.dumps(document).encode(), 3, "shard.tar: a.objects.json")
    assert str(caught.value).startswith(f"shard.tar: a.objects.json: {message}")
    assert str(caught.value).endswith(". Pack the sample again")


def test_masks_of_another_size_are_an_error() -> None:
    objects = make_objects()
    check_masks(objects, *SIZE, "x")
    with pytest.raises(UserError, match="x: masks.0. covers 600 pixels, but the image has 30×21. Pack"):
        check_masks(objects, 21, 30, "x")


def test_a_pack_has_the_objects_of_its_source(tmp_path: Path) -> None:
    entries = [
        annotation(5, 10, 90, (1.1, 2.7, 10.3, 5.9), area=33.3),
        annotation(6, 10, 3, (5, 5, 4, 0)),
        annotation(7, 20, 7, (0, 0, 30, 20), iscrowd=1),
    ]
    source = open_objects(write_coco(tmp_path / "coco", entries, num_images=3))
    pack_scenes(source, tmp_path / "pack", PackConfig())
    packed = open_objects(tmp_path / "pack")
    assert (packed.info.object_classes, packed.info.granularities) == (source.info.object_classes, ("rgb",))
    assert list(packed.keys) == list(source.keys)
    for index in range(3):
        assert_same(packed[index].objects, source[index].objects)
        assert packed.read_image_bytes(index) == source.read_image_bytes(index)
    for scenes in (packed, open_objects(tmp_path / "pack", masks=False)):
        counts = count_objects(scenes)
        assert counts is not None
        assert counts.tolist() == [2, 0, 0]
    counts = count_objects(open_objects([tmp_path / "coco/annotations/instances_val.json"]))
    assert counts is not None
    assert counts.tolist() == [2, 0, 0]
    pack_scenes(packed, tmp_path / "again", PackConfig())
    names = [path.name for path in (tmp_path / "pack").iterdir() if not path.name.endswith(INDEX_SUFFIX)]
    assert sorted(names) == ["dataset.json", "pack.json", "scenes-000000.tar"]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "pack" / name).read_bytes()
    boxes_only = open_objects(tmp_path / "pack", masks=False)[0].objects
    assert boxes_only is not None
    assert boxes_only.masks is None


def test_packs_with_different_classes_of_objects_are_not_combined(tmp_path: Path) -> None:
    for name, categories in (
        ("a", [{"id": 1, "name": "cat"}]),
        ("b", [{"id": 1, "name": "dog"}, {"id": 2, "name": "cow"}]),
    ):
        path = write_coco(tmp_path / name, [annotation(5, 10, 1, (2, 4, 10, 8))], num_images=1, categories=categories)
        pack_scenes(open_objects(path), tmp_path / f"pack-{name}", PackConfig())
    with pytest.raises(UserError, match="cannot be combined: their object_classes differ .1 and 2."):
        open_objects([tmp_path / "pack-a", tmp_path / "pack-b"])


def test_a_pack_of_boxes_has_no_masks(tmp_path: Path) -> None:
    source = open_objects(write_voc(tmp_path / "voc", {"a": voc_object("dog", (1, 1, 5, 5)), "b": ""}))
    pack_scenes(source, tmp_path / "pack", PackConfig())
    packed = open_objects(tmp_path / "pack")
    for index in range(2):
        assert_same(packed[index].objects, source[index].objects)


def test_objects_shrink_with_the_images_of_a_pack(tmp_path: Path) -> None:
    boxes = [(2, 4, 10, 8), (4.2, 6.2, 1, 1), (40, 50, 6, 6), (5, 5, 4, 0)]
    entries = [annotation(number, 10, 90, box) for number, box in enumerate(boxes)]
    source = open_objects(write_coco(tmp_path / "coco", entries, num_images=1))
    pack_scenes(source, tmp_path / "pack", PackConfig(short_side=10))
    objects = source[0].objects
    assert objects is not None
    shrunk = open_objects(tmp_path / "pack")[0].objects
    assert shrunk is not None
    assert shrunk.ids.tolist() == [0, 1, 2, 3]  # also those without a pixel, which an evaluation counts
    assert shrunk.boxes.tolist() == (objects.boxes / 2).tolist()
    assert shrunk.areas.tolist() == (objects.areas / 4).tolist()
    check_masks(shrunk, 10, 15, "x")
    visible = resize_objects(objects, SIZE, CropBox(0, 0, *SIZE), (10, 15))
    assert shrunk.masks is not None
    assert visible.masks == shrunk.masks[:1]
    assert [measure_mask(mask, 10)[1] for mask in shrunk.masks] == [20, 0, 0, 0]


def test_packs_are_opened_without_their_objects_unless_these_are_needed(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "coco", [annotation(5, 10, 90, (2, 4, 10, 8))], num_images=1)
    pack_scenes(open_objects(path), tmp_path / "pack", PackConfig())
    scenes = open_scenes(tmp_path / "pack")
    assert scenes[0].objects is None
    assert scenes.info.object_classes == ()
    with_objects, _ = inspect_scenes(tmp_path / "pack", objects=True)
    assert with_objects is not None
    assert with_objects[0].objects is not None


def test_a_sample_of_a_pack_without_objects_is_a_problem(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "coco", [annotation(5, 10, 90, (2, 4, 10, 8))])
    pack_scenes(open_objects(path), tmp_path / "pack", PackConfig())
    shard = tmp_path / "pack/scenes-000000.tar"
    with tarfile.open(shard) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    del members["2.objects.json"]
    members["1.objects.json"] = b"{"
    write_tar(shard, members)
    scenes, (problem,) = inspect_objects(tmp_path / "pack")
    text = f"{shard}: sample '2' has no 2.objects.json. Add it, or remove the sample"
    assert (problem.key, problem.text) == ("2", text)
    assert scenes is not None
    with pytest.raises(UserError, match="1.objects.json: is not JSON"):
        scenes[0]
