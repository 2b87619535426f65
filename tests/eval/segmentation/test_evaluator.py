from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing import spawn  # type: ignore[attr-defined]

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data.geometry import subsample_ids
from c2fmae.eval.confusion import confusion_matrices
from c2fmae.eval.segmentation import evaluator as evaluator_module
from c2fmae.eval.segmentation.evaluator import SegmenterEvaluator, count_pixels
from c2fmae.eval.segmentation.prediction import predict_ids
from c2fmae.eval.segmentation.prediction_store import PredictionStore
from c2fmae.eval.segmentation.scores import SegmentationScores
from c2fmae.eval.segmentation.testing_config import TestingConfig
from tests.eval.segmentation import segment_processes
from tests.eval.segmentation.tiny_segmenters import (
    MapScenes,
    draw_image,
    draw_map_scenes,
    draw_scene,
    tiny_segmenter,
)

IDENTITY = {"weights": "0", "data": "1", "testing": {}}


def make_evaluator(scenes: MapScenes, **settings: object) -> SegmenterEvaluator:
    return SegmenterEvaluator(scenes, TestingConfig.from_dict(settings), World(), num_workers=0)


class CountingPredictor:
    """Replaces `predict_ids`, counts the images, and stops at one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, stop_after: int = 1000) -> None:
        self.num_images, self.stop_after = 0, stop_after
        monkeypatch.setattr(evaluator_module, "predict_ids", self)

    def __call__(self, *args: object, **options: object) -> Tensor:
        if self.num_images == self.stop_after:
            raise KeyboardInterrupt
        self.num_images += 1
        return predict_ids(*args, **options)  # type: ignore[arg-type]


def are_equal(one: SegmentationScores, other: SegmentationScores) -> bool:
    return torch.equal(one.confusion, other.confusion) and torch.equal(one.image_totals, other.image_totals)


def test_predictions_of_all_images_are_counted() -> None:
    scenes, segmenter = draw_map_scenes(6), tiny_segmenter()
    segmenter.train()
    scores = make_evaluator(scenes, stride=16).evaluate(segmenter)
    assert segmenter.training
    segmenter.eval()
    expected = counts = torch.zeros(4, 4, dtype=torch.int64)
    for scene in (scenes[index] for index in range(6)):
        ids = predict_ids(segmenter, scene.maps["rgb"], TestingConfig(stride=16))
        counts = confusion_matrices(ids[None], scene.maps["semantic"][None], 4)[0]
        expected = expected + counts
    assert torch.equal(scores.confusion, expected)
    assert torch.equal(scores.image_totals.sum(dim=0), scores.totals)
    assert scores.image_totals[-1, 0].tolist() == counts.diagonal().tolist()


def test_other_weights_are_evaluated() -> None:
    scenes, other = draw_map_scenes(3), tiny_segmenter(seed=1)
    evaluator = make_evaluator(scenes)
    averaged = evaluator.evaluate(tiny_segmenter(), dict(other.named_parameters()))
    assert are_equal(averaged, evaluator.evaluate(other))
    assert not are_equal(averaged, evaluator.evaluate(tiny_segmenter()))


def test_an_interrupted_evaluation_does_not_predict_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, segmenter, store = draw_map_scenes(6), tiny_segmenter(), PredictionStore(tmp_path / "ids", IDENTITY)
    expected = make_evaluator(scenes).evaluate(segmenter)
    CountingPredictor(monkeypatch, stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        make_evaluator(scenes).evaluate(segmenter, store=store)
    store.path("folder/001").write_bytes(b"not a PNG")
    predictor = CountingPredictor(monkeypatch)
    assert are_equal(make_evaluator(scenes).evaluate(segmenter, store=store), expected)
    assert predictor.num_images == 6 - 4 + 1
    assert are_equal(make_evaluator(scenes).evaluate(segmenter, store=store), expected)
    assert are_equal(make_evaluator(scenes).score_predictions(store, 4), expected)
    assert predictor.num_images == 6 - 4 + 1


def test_predictions_of_other_weights_or_settings_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, segmenter, store = draw_map_scenes(3), tiny_segmenter(), PredictionStore(tmp_path / "ids", IDENTITY)
    make_evaluator(scenes).evaluate(segmenter, store=store)
    other, changed = tiny_segmenter(seed=1), replace(store, identity={**IDENTITY, "weights": "2"})
    predictor = CountingPredictor(monkeypatch)
    scores = make_evaluator(scenes).evaluate(other, store=changed)
    assert predictor.num_images == 3
    assert are_equal(scores, make_evaluator(scenes).evaluate(other))


def test_scores_of_missing_predictions_are_an_error(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path, IDENTITY)
    with pytest.raises(UserError, match="^folder/000: has no stored prediction. Test the run again: c2fmae eval"):
        make_evaluator(draw_map_scenes(2)).score_predictions(store, 4)
    with pytest.raises(UserError, match=r"^\.\./a: cannot be the name of a file below .*\. Rename the image$"):
        store.path("../a")


def test_labels_at_a_stride_are_compared_with_the_pixels_that_they_hold() -> None:
    scene = draw_scene(21, 30, label_stride=4)
    predicted = (draw_image(21, 30, seed=5)[0] // 64).to(torch.uint8)
    counts = count_pixels(scene, predicted, 4)
    cells = subsample_ids(predicted, 4)
    assert torch.equal(counts, confusion_matrices(cells[None], scene.maps["semantic"][None], 4)[0])
    assert counts.sum() == (scene.maps["semantic"] != 255).sum()


def test_an_id_without_a_class_names_the_image() -> None:
    scenes = draw_map_scenes(2)
    scenes[1].maps["semantic"][9, 9] = 4
    message = "^folder/001: semantic: expected ids below 4, the number of classes, got 4. Fix the map, or the classes"
    with pytest.raises(UserError, match=message):
        make_evaluator(scenes).evaluate(tiny_segmenter())


def test_a_map_of_another_size_than_its_image_is_an_error() -> None:
    scene = draw_scene(20, 30)
    cropped = Scene(scene.key, {**scene.maps, "semantic": scene.maps["semantic"][:, :29]})
    message = "^folder/000: semantic: expected 20×30 cells for this image, got 20×29. Store the map at the size"
    with pytest.raises(UserError, match=message):
        make_evaluator(MapScenes([cropped])).evaluate(tiny_segmenter())


def test_a_set_without_labels_is_an_error() -> None:
    scene = draw_scene(20, 30)
    scene.maps["semantic"].fill_(255)
    with pytest.raises(UserError, match="^test: none of the 1 images has a labelled pixel. Check the maps: c2fmae"):
        make_evaluator(MapScenes([scene])).evaluate(tiny_segmenter())
    scores = make_evaluator(MapScenes([scene, draw_scene(20, 30, seed=1)])).evaluate(tiny_segmenter())
    assert scores.image_totals[0, :2].sum() == 0


@pytest.mark.unchecked
def test_two_processes_compute_the_scores_of_one(tmp_path: Path) -> None:
    expected = make_evaluator(draw_map_scenes(5)).evaluate(tiny_segmenter())
    spawn(segment_processes.run_rank, args=(tmp_path,), nprocs=2)
    for rank in range(2):
        assert are_equal(SegmentationScores(*torch.load(tmp_path / f"{rank}.pt")), expected)
    scored = make_evaluator(draw_map_scenes(5)).score_predictions(PredictionStore(tmp_path / "ids", IDENTITY), 4)
    assert are_equal(scored, expected)
