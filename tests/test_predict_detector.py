"""`predict` writes the objects that a detector finds, in several formats, and continues where it ended."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.objects import Detections
from c2fmae.core.rle import decode_mask, encode_mask
from c2fmae.data import open_scenes
from c2fmae.data.decode import decode_ids, decode_image
from c2fmae.data.objects import find_object_sets, open_objects
from c2fmae.eval.detection import object_files
from c2fmae.eval.detection.object_formats import paint_instance_map, paint_semantic_map
from c2fmae.eval.detection.prediction import detect_objects
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from c2fmae.eval.engine import BatchingConfig
from c2fmae.models.detectors import load_detector
from c2fmae.predict import PredictOptions, predict
from tests.models.detectors.built_detectors import build_detector, write_detection_run
from tests.predict_images import SIZES, draw_image, interrupt_after, list_files, run_predict, write_images

SMALL = ("short_side=48", "max_side=64")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_images(tmp_path_factory.mktemp("images") / "holiday")
    Image.fromarray(np.zeros((200, 5000, 3), np.uint8)).save(root / "wide.png")
    return root


ALL_SIZES = {**SIZES, "wide": (200, 5000)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detection_run(tmp_path_factory.mktemp("detector") / "run", build_detector(num_classes=3))


@pytest.fixture(scope="module")
def box_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    detector = build_detector(num_classes=3, mask_head=None)
    return write_detection_run(tmp_path_factory.mktemp("boxes") / "run", detector)


def find_given_objects(
    detector: Any, image: Tensor, testing: Any, *, weights: Mapping[str, Tensor] | None = None
) -> Detections:
    """Replace `detect_objects`: two overlapping objects, the lower one with a hole, and one without a pixel."""
    height, width = image.shape[1:]
    masks = np.zeros((3, height, width), np.uint8)
    masks[0, 2 : height - 2, 1 : width // 2] = 1
    masks[0, 5:8, 3:6] = 0
    masks[1, : height // 2, width // 3 :] = 1
    boxes = torch.tensor(
        [[1, 2, width // 2, height - 2], [width // 3, 0, width, height // 2], [3, 3, 4, 4]], dtype=torch.float32
    )
    has_masks = detector.spec.mask_head is not None
    return Detections(
        boxes,
        torch.tensor([0.6, 0.9, 0.55]),
        torch.tensor([2, 0, 1]),
        tuple(encode_mask(mask) for mask in masks) if has_masks else None,
    )


@pytest.fixture
def _given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_files, "detect_objects", find_given_objects)


def test_every_readable_image_has_the_objects_of_the_detector(images: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_predict(run, images, out, threshold=0.1, overrides=SMALL)
    assert (result.model_kind, result.num_images, result.num_new) == ("detector", 6, 6)
    assert result.unreadable[0].startswith(f"{images}/trips/broken.jpg: cannot be decoded (")
    assert (out / "unreadable.txt").read_text() == result.unreadable[0] + "\n"
    assert "scores above 0.1" in result.protocol
    described = json.loads((out / "images.json").read_text())
    sizes = {entry["file_name"]: (entry["height"], entry["width"]) for entry in described["images"]}
    assert {name.rsplit(".", 1)[0]: size for name, size in sizes.items()} == ALL_SIZES
    assert described["categories"] == [{"id": number + 1, "name": str(number)} for number in range(3)]
    results = json.loads((out / "predictions.json").read_text())
    detector = load_detector(run)
    testing = DetectionTestingConfig(short_side=48, max_side=64, score_threshold=0.1)
    num_objects = 0
    for entry in described["images"]:
        file = images / entry["file_name"]
        expected = detect_objects(detector, decode_image(file.read_bytes(), str(file)), testing)
        found = [each for each in results if each["image_id"] == entry["id"]]
        assert [each["score"] for each in found] == expected.scores.tolist()
        assert [each["category_id"] - 1 for each in found] == expected.labels.tolist()
        for each, (x0, y0, x1, y1) in zip(found, expected.boxes.tolist(), strict=True):
            assert each["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-4)
        masks = tuple(each["segmentation"]["counts"].encode() for each in found)
        assert masks == expected.masks
        num_objects += len(found)
    assert len(results) == num_objects > 10


@pytest.mark.usefixtures("_given")
def test_pycocotools_reads_the_results(images: Path, run: Path, tmp_path: Path) -> None:
    run_predict(run, images, tmp_path / "out")
    truth = COCO(str(tmp_path / "out" / "images.json"))
    loaded = truth.loadRes(str(tmp_path / "out" / "predictions.json"))
    assert len(loaded.anns) == 3 * len(ALL_SIZES)


@pytest.mark.usefixtures("_given")
def test_images_that_are_named_by_numbers_have_these_ids(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in (139, 285):
        draw_image(8, 12).save(tmp_path / "in" / f"{number:012d}.jpg")
    run_predict(run, tmp_path / "in", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {entry["image_id"] for entry in results} == {139, 285}


@pytest.mark.usefixtures("_given")
def test_a_second_run_detects_nothing_and_adds_what_is_missing(
    images: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run_predict(run, images, out)
    before = list_files(out)
    monkeypatch.setattr(object_files, "detect_objects", None)
    result = run_predict(run, images, out)
    assert (result.num_images, result.num_new, len(result.unreadable)) == (6, 0, 1)
    after = list_files(out)
    assert after.pop("unreadable.txt")[1] == before.pop("unreadable.txt")[1]
    assert after == before
    assert run_predict(run, images, out, save=("overlay", "yolo"), as_scenes=True).num_new == 6
    with Image.open(out / "overlay" / "trips" / "day 1" / "turned.jpg") as overlay:
        assert overlay.size == (36, 48)
    assert list_files(out)["predictions.json"] == before["predictions.json"]


@pytest.mark.usefixtures("_given")
def test_an_interrupted_detector_continues(images: Path, run: Path, tmp_path: Path) -> None:
    run_predict(run, images, tmp_path / "whole", save=("yolo",))
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, object_files, "detect_objects", 2)
        with pytest.raises(KeyboardInterrupt):
            run_predict(run, images, tmp_path / "out", save=("yolo",))
    assert not (tmp_path / "out" / "predictions.json").exists()
    with next((tmp_path / "out" / "detections").glob("*.jsonl")).open("a") as file:
        file.write('{"image": "photo", "siz')  # as a process that is killed leaves it
    assert run_predict(run, images, tmp_path / "out", save=("yolo",)).num_new == 4
    continued = list_files(tmp_path / "out")
    for name, (_, content) in list_files(tmp_path / "whole").items():
        assert name.startswith("detections/") or continued[name][1] == content


@pytest.mark.usefixtures("_given")
def test_an_image_of_another_size_is_predicted_again(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    out = tmp_path / "out"
    for size, options in (((20, 30), {}), ((30, 24), {"save": ("yolo", "overlay")})):
        draw_image(*size).save(tmp_path / "in" / "a.png")
        run_predict(run, tmp_path / "in", out, **options)
    (entry,) = json.loads((out / "images.json").read_text())["images"]
    assert (entry["height"], entry["width"]) == (30, 24)
    with Image.open(out / "overlay" / "a.jpg") as overlay:
        assert overlay.size == (24, 30)


@pytest.mark.usefixtures("_given")
def test_labels_of_yolo_are_read_back_as_the_masks(images: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_predict(run, images, out, save=("yolo",))
    assert (out / "images" / "strip.PNG").resolve() == (images / "strip.PNG").resolve()
    scenes = open_objects(find_object_sets(str(out / "data.yaml"))["train"])
    assert {scene.key for scene in map(scenes.__getitem__, range(len(scenes)))} == ALL_SIZES.keys()
    assert [entry.name for entry in scenes.info.object_classes] == ["0", "1", "2"]
    detector = load_detector(run)
    for index in range(len(scenes)):
        objects, (height, width) = scenes[index].objects, ALL_SIZES[scenes.keys[index]]
        expected = find_given_objects(detector, scenes[index].maps["rgb"], None)
        assert objects is not None
        assert objects.masks is not None
        assert expected.masks is not None
        assert objects.labels.tolist() == expected.labels.tolist()[:2]  # the last object has no pixel
        for mask, counts in zip(objects.masks, expected.masks, strict=False):
            assert np.array_equal(decode_mask(mask, height, width), decode_mask(counts, height, width))


@pytest.mark.usefixtures("_given")
def test_labels_of_yolo_are_boxes_without_masks(images: Path, box_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_predict(box_run, images / "photo.jpg", out, save=("yolo", "overlay"))
    scenes = open_objects(find_object_sets(str(out / "data.yaml"))["train"])
    objects = scenes[0].objects
    assert objects is not None
    assert objects.masks is None
    expected = find_given_objects(load_detector(box_run), scenes[0].maps["rgb"], None)
    assert torch.allclose(objects.boxes, expected.boxes, atol=1e-3)
    assert "segmentation" not in json.loads((out / "predictions.json").read_text())[0]
    with pytest.raises(UserError, match="--as-scenes: needs masks, but the detector predicts boxes only"):
        run_predict(box_run, images, tmp_path / "scenes", as_scenes=True)
    assert not (tmp_path / "scenes").exists()


@pytest.mark.usefixtures("_given")
def test_predictions_as_scenes_are_a_data_set(images: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_predict(run, images, out, as_scenes=True)
    scenes = open_scenes(out)
    assert list(scenes.keys) == sorted(ALL_SIZES)
    assert scenes.info.granularities == ("semantic", "instance", "rgb")
    assert scenes.info.class_names == ("0", "1", "2")
    assert scenes.info.maps_know_labels is False
    detector = load_detector(run)
    for index, key in enumerate(scenes.keys):
        maps = scenes[index].maps
        assert {tuple(tensor.shape[-2:]) for tensor in maps.values()} == {ALL_SIZES[key]}
        found = find_given_objects(detector, maps["rgb"], None)
        assert np.array_equal(maps["semantic"].numpy(), paint_semantic_map(found, ALL_SIZES[key]))
        assert np.array_equal(maps["instance"].numpy(), paint_instance_map(found, ALL_SIZES[key]))
    objects = open_objects(str(out))[0].objects
    assert objects is not None
    assert objects.labels.tolist() == [2, 0]


def test_objects_with_higher_scores_cover_others_in_maps() -> None:
    masks = np.zeros((3, 2, 4), np.uint8)
    masks[0, :, :3] = 1
    masks[1, :, 1:] = 1
    masks[2, 0] = 1
    found = Detections(
        torch.zeros(3, 4), torch.tensor([0.6, 0.9, 0.7]), torch.tensor([5, 4, 3]), tuple(map(encode_mask, masks))
    )
    assert paint_semantic_map(found, (2, 4)).tolist() == [[3, 4, 4, 4], [5, 4, 4, 4]]
    assert paint_instance_map(found, (2, 4)).tolist() == [[3, 2, 2, 2], [1, 2, 2, 2]]
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), ())
    assert paint_semantic_map(empty, (1, 2)).tolist() == [[255, 255]]
    assert paint_instance_map(empty, (1, 2)).tolist() == [[0, 0]]


def test_maps_hold_more_objects_than_bytes_have_values(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def find_many(*_: Any) -> Detections:
        masks = np.eye(300, dtype=np.uint8).reshape(300, 15, 20)
        return Detections(torch.zeros(300, 4), torch.ones(300), torch.zeros(300).long(), tuple(map(encode_mask, masks)))

    monkeypatch.setattr(object_files, "detect_objects", find_many)
    (tmp_path / "in").mkdir()
    draw_image(15, 20).save(tmp_path / "in" / "a.png")
    run_predict(run, tmp_path / "in", tmp_path / "out", as_scenes=True)
    ids = decode_ids((tmp_path / "out" / "instance" / "a.png").read_bytes(), "a")
    assert len(np.unique(ids)) == 300
    assert 255 not in ids
    objects = open_objects(str(tmp_path / "out"))[0].objects
    assert objects is not None
    assert len(objects) == 300


def test_predictions_with_another_threshold_are_never_mixed(images: Path, run: Path, tmp_path: Path) -> None:
    run_predict(run, images / "photo.jpg", tmp_path / "out", overrides=SMALL)
    with pytest.raises(UserError, match=r"another value of protocol \('.* above 0.5, .*fp32', now '.* above 0.3,"):
        run_predict(run, images / "photo.jpg", tmp_path / "out", overrides=SMALL, threshold=0.3)


def test_the_averaged_weights_can_be_used(images: Path, tmp_path: Path) -> None:
    run = write_detection_run(tmp_path / "run", build_detector(num_classes=3), with_ema=True)
    options, batching = PredictOptions(overrides=SMALL, threshold=0.1), BatchingConfig(num_workers=0)
    file, out = images / "photo.jpg", tmp_path / "out"
    predict(str(run), str(file), out, World(), options, batching=batching, use_ema=True)
    testing = DetectionTestingConfig(short_side=48, max_side=64, score_threshold=0.1)
    expected = detect_objects(load_detector(run, use_ema=True), decode_image(file.read_bytes(), "photo"), testing)
    found = [entry["score"] for entry in json.loads((out / "predictions.json").read_text())]
    assert found == expected.scores.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 3}, r"--top-k: is for classifiers, but .* is a detector. Leave it out"),
        ({"save": ("maps",)}, r"--save maps: is for segmenters, but .* is a detector. Leave it out"),
        ({"save": ("ylo",)}, r"no output named 'ylo'. Did you mean 'yolo'"),
        ({"overrides": ("short_sid=3",)}, r"predict: short_sid: no such setting. Did you mean 'short_side'"),
        ({"threshold": 1.5}, r"predict: score_threshold: .* less than or equal to 1"),
    ],
)
def test_options_that_do_not_fit_a_detector_are_rejected(
    options: dict[str, Any], message: str, images: Path, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run_predict(run, images, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
