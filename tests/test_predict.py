"""`predict` writes one prediction for each readable image, and continues where it ended."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from c2fmae.core.distributed import World
from c2fmae.core.errors import RunError, UserError
from c2fmae.data import open_scenes
from c2fmae.data.decode import decode_ids, decode_image
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.pack import PackConfig, pack_scenes
from c2fmae.eval.engine import BatchingConfig
from c2fmae.eval.robustness.image_classifier import load_image_classifier
from c2fmae.eval.segmentation import id_maps
from c2fmae.eval.segmentation.id_maps import limit_size
from c2fmae.eval.segmentation.prediction import predict_ids
from c2fmae.eval.segmentation.testing_config import TestingConfig
from c2fmae.models.classifiers import load_classifier
from c2fmae.models.segmenters import load_segmenter
from c2fmae.predict import PredictOptions, predict
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import load_recipe
from tests.exports.noise_sources import write_noise_run
from tests.models.classifiers.noise_classifiers import make_noise_classifier, write_finetuned_run
from tests.models.segmenters.noise_segmenters import make_noise_segmenter, write_segmentation_run
from tests.predict_images import SIZES, interrupt_after, list_files, run_predict, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "holiday")


@pytest.fixture(scope="module")
def segmentation_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segmentation_run(tmp_path_factory.mktemp("segmenter") / "run", make_noise_segmenter("linear"))


@pytest.fixture(scope="module")
def finetuned_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_finetuned_run(tmp_path_factory.mktemp("classifier") / "run", make_noise_classifier())


def read_table(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_readable_image_gets_an_id_map_of_its_size(images: Path, segmentation_run: Path, tmp_path: Path) -> None:
    result = run_predict(segmentation_run, images, tmp_path / "out")
    maps = {path.relative_to(tmp_path / "out" / "semantic") for path in (tmp_path / "out").rglob("*.png")}
    assert {str(path.with_suffix("")) for path in maps} == SIZES.keys()
    segmenter = load_segmenter(segmentation_run)
    for key, size in SIZES.items():
        with Image.open(tmp_path / "out" / "semantic" / f"{key}.png") as stored:
            assert (stored.mode, stored.size) == ("P", size[::-1])
            ids = np.array(stored)
        (file,) = images.glob(f"{key}.*")
        image = decode_image(file.read_bytes(), str(file))
        assert np.array_equal(ids, predict_ids(segmenter, image, TestingConfig()).numpy())
    assert (result.num_images, result.num_new, len(result.unreadable)) == (5, 5, 1)
    assert result.unreadable[0].startswith(f"{images}/trips/broken.jpg: cannot be decoded (")
    assert (tmp_path / "out" / "unreadable.txt").read_text() == result.unreadable[0] + "\n"
    assert result.protocol.startswith("windows of 32×32 every 21×21 pixels")


def test_a_second_run_predicts_nothing_and_retries_broken_images(
    images: Path, segmentation_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_predict(segmentation_run, images, tmp_path / "out")
    before = list_files(tmp_path / "out" / "semantic")
    monkeypatch.setattr(id_maps, "predict_ids", None)
    result = run_predict(segmentation_run, images, tmp_path / "out", save=("maps", "overlay"))
    assert (result.num_images, result.num_new) == (5, 5)  # their overlays are new, the maps are not
    assert run_predict(segmentation_run, images, tmp_path / "out").num_new == 0
    assert list_files(tmp_path / "out" / "semantic") == before
    with Image.open(tmp_path / "out" / "overlay" / "trips" / "day 1" / "turned.jpg") as overlay:
        assert overlay.size == (36, 48)
    assert (tmp_path / "out" / "legend.png").exists()


def test_an_image_of_another_size_is_predicted_again(images: Path, segmentation_run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("photo.jpg", "trips/cmyk.jpg"):
        (tmp_path / "in" / "a.jpg").write_bytes((images / name).read_bytes())
        run_predict(
            segmentation_run, tmp_path / "in", tmp_path / "out", save=("overlay",), as_scenes=name != "photo.jpg"
        )
    with Image.open(tmp_path / "out" / "semantic" / "a.png") as stored:
        assert stored.size == (40, 32)


def test_an_interrupted_segmenter_continues(images: Path, segmentation_run: Path, tmp_path: Path) -> None:
    run_predict(segmentation_run, images, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, id_maps, "predict_ids", 2)
        with pytest.raises(KeyboardInterrupt):
            run_predict(segmentation_run, images, tmp_path / "out")
    assert run_predict(segmentation_run, images, tmp_path / "out").num_new == 3
    for name, (_, content) in list_files(tmp_path / "whole").items():
        assert (tmp_path / "out" / name).read_bytes() == content


def test_a_classifier_writes_its_most_probable_classes(images: Path, finetuned_run: Path, tmp_path: Path) -> None:
    result = run_predict(finetuned_run, images, tmp_path / "out", top_k=2)
    rows = read_table(tmp_path / "out")
    assert [row["image"] for row in rows] == [
        "deep.png", "photo.jpg", "strip.PNG", "trips/cmyk.jpg", "trips/day 1/turned.jpeg",
    ]  # fmt: skip
    classifier = load_image_classifier(str(finetuned_run))
    names = [label.name if label else "" for label in load_classifier(finetuned_run).spec.labels]
    for row in rows:
        view = classifier.view(decode_image((images / row["image"]).read_bytes(), row["image"]))
        with torch.inference_mode():
            probabilities = classifier.model(view[None])[0].softmax(dim=0)
        assert int(row["index_1"]) == int(probabilities.argmax())
        assert row["class_1"] == names[int(row["index_1"])]
        assert float(row["probability_1"]) == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert float(row["probability_2"]) == pytest.approx(float(probabilities.sort().values[-2]), abs=1e-5)
    assert (result.num_images, result.num_new, len(result.unreadable)) == (5, 5, 1)


def test_an_interrupted_classifier_continues_after_its_last_complete_line(
    images: Path, finetuned_run: Path, tmp_path: Path
) -> None:
    run_predict(finetuned_run, images, tmp_path / "out")
    table = tmp_path / "out" / "predictions.csv"
    complete = table.read_bytes()
    table.write_bytes(complete[: complete.index(b"strip.PNG") + 20])
    assert run_predict(finetuned_run, images, tmp_path / "out").num_new == 3
    continued = table.read_bytes()
    assert continued.splitlines()[:3] == complete.splitlines()[:3]
    names = [[line.partition(b",")[0] for line in text.splitlines()] for text in (continued, complete)]
    assert names[0] == names[1]
    assert run_predict(finetuned_run, images, tmp_path / "out").num_new == 0
    assert table.read_bytes() == continued


def test_predictions_that_depend_on_something_else_are_never_mixed(
    images: Path, segmentation_run: Path, finetuned_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_predict(segmentation_run, images / "photo.jpg", out)
    before = list_files(out)
    other = write_segmentation_run(tmp_path / "other", make_noise_segmenter("fcn"))
    changes: Sequence[tuple[Path, Path, dict[str, Any], str]] = (
        (other, images / "photo.jpg", {}, "weights, and different ones"),
        (segmentation_run, images / "photo.jpg", {"overrides": ("flip=true",)}, r"protocol \('windows of .* flip"),
        (segmentation_run, images, {}, r"images \('.*photo.jpg', now '.*holiday'\)"),
        (finetuned_run, images / "photo.jpg", {}, "weights"),
    )
    for run, source, options, change in changes:
        with pytest.raises(UserError, match=f"out: holds predictions with another value of {change}"):
            run_predict(run, source, out, **options)
    assert list_files(out) == before
    (out / "predict.json").unlink()
    with pytest.raises(UserError, match="out: contains other files. Choose a new or empty directory"):
        run_predict(segmentation_run, images / "photo.jpg", out)


def test_predictions_as_scenes_are_a_data_set_for_pretraining(
    images: Path, segmentation_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_predict(segmentation_run, images, out)
    assert open_scenes(out).info.granularities == ("semantic",)
    result = run_predict(segmentation_run, images, out, as_scenes=True)
    assert result.num_images == 5
    scenes = open_scenes(out)
    assert list(scenes.keys) == sorted(SIZES)
    assert scenes.info.class_names == ("sky", "tree", "road", "car", "cat")
    assert scenes.info.maps_know_labels is False
    for index, key in enumerate(scenes.keys):
        maps = scenes[index].maps
        assert maps["semantic"].shape == SIZES[key]
        assert maps["rgb"].shape == (3, *SIZES[key])
    assert (out / "rgb" / "strip.PNG").resolve() == (images / "strip.PNG").resolve()
    overrides = [
        f"data.train={out}", "data.held_out=null", "training.steps=2", "training.warmup_steps=1",
        "training.batch_size=2", "data.workers=0", "watching.figures=0", "method.granularities=[semantic, rgb]",
        "method.masking=semantic",
    ]  # fmt: skip
    outcome = pretrain(load_recipe("c2fmae-debug", overrides), tmp_path / "run")
    assert outcome.exit_code == 0


def test_maps_of_labelled_images_are_described_as_they_are_written(
    images: Path, segmentation_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes((images / "photo.jpg").read_bytes())
    (tmp_path / "masks").mkdir()
    info = {"classes": [{"name": "old"}], "offset": 1, "ignore": 0, "label_stride": 2, "value_range": [0, 128]}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    run_predict(segmentation_run, tmp_path, tmp_path.with_name("out"), as_scenes=True)
    written = open_scenes(tmp_path.with_name("out"))
    assert (written.info.offset, written.info.ignore, written.info.label_stride) == (0, 255, 1)
    assert written.info.value_range == ((0, 128),)
    assert written[0].maps["semantic"].shape == (40, 56)


def test_images_of_shards_are_copied(segmentation_run: Path, tmp_path: Path) -> None:
    pack_scenes(GeneratedScenes(size=32, length=3), tmp_path / "pack", PackConfig())
    run_predict(segmentation_run, tmp_path / "pack", tmp_path / "out", as_scenes=True, overrides=("mode=whole",))
    scenes, packed = open_scenes(tmp_path / "out"), open_scenes(tmp_path / "pack")
    assert list(scenes.keys) == list(packed.keys)
    assert torch.equal(scenes[2].maps["rgb"], packed[2].maps["rgb"])


def test_very_large_images_are_predicted_in_windows_and_at_one_scale() -> None:
    testing = TestingConfig(mode="whole", scales=(1.0, 1.5), flip=True, short_side=64)
    assert limit_size(testing, (5000, 8000), 16, 25) == testing
    assert limit_size(testing, (5000, 8001), 16, 24) == TestingConfig(mode="slide", short_side=64)
    assert limit_size(testing, (5000, 8000), 16, 26) == TestingConfig(mode="slide", short_side=64)
    one_scale = TestingConfig(mode="whole", short_side=64)
    assert limit_size(one_scale, (5000, 8000), 16, 26) == one_scale
    whole = TestingConfig(mode="whole", flip=True)
    assert limit_size(whole, (2048, 2048), 16, 3) == whole
    assert limit_size(whole, (2048, 2049), 16, 3) == TestingConfig(mode="slide", flip=True)


def test_the_averaged_weights_of_a_step_can_be_used(images: Path, tmp_path: Path) -> None:
    segmenter = make_noise_segmenter("linear")
    run = write_segmentation_run(tmp_path / "run", segmenter, step=3, with_ema=True)
    options, batching = PredictOptions(), BatchingConfig(num_workers=0)
    predict(str(run), str(images / "photo.jpg"), tmp_path / "a", World(), options, batching=batching, use_ema=True)
    averaged = load_segmenter(run, use_ema=True)
    image = decode_image((images / "photo.jpg").read_bytes(), "photo")
    stored = decode_ids((tmp_path / "a" / "semantic" / "photo.png").read_bytes(), "photo")
    assert np.array_equal(stored, predict_ids(averaged, image, TestingConfig()).numpy())
    with pytest.raises(UserError, match="step-00000008: is missing"):
        predict(str(run), str(images), tmp_path / "b", World(), options, batching=batching, step=8)
    assert not (tmp_path / "b").exists()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "classifier": ({"as_scenes": True}, r"--as-scenes: is for segmenters and detectors, but .* is a classifier"),
    "classifier with overlays": (
        {"save": ("maps", "overlay")},
        r"--save maps: is for segmenters, but .* is a classifier",
    ),
    "segmenter with a threshold": ({"threshold": 0.3}, r"--threshold: is for detectors, but .* is a segmenter"),
    "segmenter with labels": ({"save": ("yolo",)}, r"--save yolo: is for detectors, but .* is a segmenter"),
    "segmenter": ({"top_k": 3}, r"--top-k: is for classifiers, but .* is a segmenter"),
    "unknown output": ({"save": ("maps", "overlya")}, r"no output named 'overlya'. Did you mean 'overlay'"),
    "unknown setting": ({"overrides": ("flipp=true",)}, r"predict: flipp: no such setting. Did you mean 'flip'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_of_another_kind_of_model_are_rejected(
    case: str, images: Path, segmentation_run: Path, finetuned_run: Path, tmp_path: Path
) -> None:
    options, message = REFUSED[case]
    run = finetuned_run if case.startswith("classifier") else segmentation_run
    with pytest.raises(UserError, match=message):
        run_predict(run, images, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_run_without_classes_is_rejected_with_the_commands_that_add_them(images: Path, tmp_path: Path) -> None:
    run = write_noise_run(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        run_predict(run, images, tmp_path / "out")
    assert str(caught.value) == (
        f"{run}: is a pre-training run, which predicts no classes. Make a classifier of it with `c2fmae eval finetune "
        f"{run} --data D`, a segmenter with `c2fmae eval segment {run} --data D`, or a detector with `c2fmae eval "
        f"detect {run} --data D`"
    )


def test_the_output_cannot_be_inside_the_images(images: Path, segmentation_run: Path) -> None:
    with pytest.raises(UserError, match="out: is inside the folder of images"):
        run_predict(segmentation_run, images, images / "trips" / "out")


def test_a_lack_of_open_files_is_not_a_broken_image(
    images: Path, segmentation_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise UserError("photo.jpg: cannot be read: Too many open files") from OSError(24, "Too many open files")

    monkeypatch.setattr("c2fmae.data.folders.FolderScenes.read_map_bytes", fail)
    with pytest.raises(RunError, match="more files are needed at once"):
        run_predict(segmentation_run, images, tmp_path / "out")


@pytest.mark.parametrize("name", ["coco.json", "data.yaml", "val.txt"])
def test_annotations_in_place_of_images_are_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    message = f"{name}: has annotations, but predict reads images. Give the folder of its images"
    with pytest.raises(UserError, match=message):
        run_predict(tmp_path / "run", tmp_path / name, tmp_path / "out")
