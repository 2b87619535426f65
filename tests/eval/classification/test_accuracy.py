"""Scores of classifiers, compared with direct computations, and the inputs of classifiers."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.core.scene import Scene
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.data import CentralView, Scenes
from c2fmae.eval.best_checkpoint import BestScore
from c2fmae.eval.classification.accuracy import ClassificationScores, ClassifierEvaluator
from c2fmae.eval.classification.result import build_finetune_metrics
from c2fmae.eval.classification.task import build_view_options, prepare_classifier_inputs
from c2fmae.eval.engine import BatchingConfig
from tests.eval.classification.tiny_finetuning import RGB_SEMANTIC_SPEC, make_coloured_batch, make_tiny_classifier
from tests.eval.tiny_backbones import InMemoryScenes, draw_coloured_scenes

pytestmark = pytest.mark.numeric


def build_evaluator(
    scenes: Sequence[Scene], *, batch_size: int = 5, workers: int = 0, size: int = 16
) -> ClassifierEvaluator:
    source: Scenes = InMemoryScenes(scenes)
    view = CentralView(**build_view_options(make_tiny_classifier().backbone, (size, size)))
    batching = BatchingConfig(batch_size=batch_size, num_workers=workers)
    return ClassifierEvaluator(source, view, World(), batching, torch.float32)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
@pytest.mark.parametrize("workers", [0, 2])
def test_scores_equal_those_of_all_images_at_once(batch_size: int, workers: int) -> None:
    model = make_tiny_classifier()
    scores = build_evaluator(draw_coloured_scenes(21), batch_size=batch_size, workers=workers).evaluate(model, ("rgb",))
    batch = make_coloured_batch(21)
    with torch.no_grad():
        logits = model(prepare_classifier_inputs(model, batch, ("rgb",)))
    confusion = torch.zeros(3, 3, dtype=torch.long)
    for truth, predicted in zip(batch.labels, logits.argmax(dim=1).tolist(), strict=True):
        confusion[truth or 0, predicted] += 1
    assert torch.equal(scores.confusion, confusion)
    assert scores.num_images == 21
    assert scores.top1 == pytest.approx(confusion.trace().item() / 21)
    assert scores.top5 == 1  # there are three labels
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([label or 0 for label in batch.labels]))
    assert scores.loss == pytest.approx(expected.item(), rel=1e-5)
    assert not model.training


def test_top5_counts_the_five_highest_logits() -> None:
    model = make_tiny_classifier(labels=[LabelInfo(name=str(index)) for index in range(9)])
    scores = build_evaluator(draw_coloured_scenes(27, labels=9)).evaluate(model, ("rgb",))
    scenes = draw_coloured_scenes(27, labels=9)
    images = torch.stack([scene.maps["rgb"] for scene in scenes])
    with torch.no_grad():
        ranks = model(model.backbone.standardise(images)).argsort(dim=1, descending=True)[:, :5].tolist()
    assert scores.num_top5_correct == sum(scene.label in rank for scene, rank in zip(scenes, ranks, strict=True))
    assert 0 < scores.num_top5_correct < 27


def test_inputs_are_prepared_with_the_spec_of_the_backbone() -> None:
    spec = RGB_SEMANTIC_SPEC.model_copy(
        update={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "channels": {"instance": 9, "rgb": 3}}
    )
    model, batch = make_tiny_classifier(spec), make_coloured_batch(2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    inputs = prepare_classifier_inputs(model, batch, ("rgb",))
    assert list(inputs) == ["rgb"]
    torch.testing.assert_close(inputs["rgb"], (batch.maps["rgb"].float() / 255 - mean) / std)
    assert build_view_options(model.backbone, (16, 16)) == {"size": (16, 16), "label_stride": 4, "max_instances": 9}
    assert build_view_options(make_tiny_classifier().backbone, (16, 16))["max_instances"] == 32


def test_other_weights_are_evaluated_without_changing_the_model() -> None:
    model = make_tiny_classifier().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = {name: weight.clone() for name, weight in model.named_parameters()}
    other["head.bias"] = torch.tensor([0.0, 1e6, 0.0])
    scores = build_evaluator(draw_coloured_scenes(9)).evaluate(model, ("rgb",), other)
    assert scores.confusion.sum(dim=0).tolist() == [0, 9, 0]
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_three_granularities_of_an_image_of_224_pixels_are_588_tokens() -> None:
    """Check the number of tokens in the last row of the paper's Table I."""
    spec = BackboneSpec(
        encoder=EncoderConfig(name="test_vit"),
        image_size=(224, 224),
        channels={"semantic": 3, "instance": 32, "rgb": 3},
        class_names=("one", "two", "three"),
    )
    model = make_tiny_classifier(spec)
    scenes = [
        Scene(scene.key, {**scene.maps, "instance": scene.maps["semantic"]}, scene.label)
        for scene in draw_coloured_scenes(2, size=224)
    ]
    view = CentralView(**build_view_options(model.backbone, (224, 224)))
    batching = BatchingConfig(batch_size=2, num_workers=0)
    evaluator = ClassifierEvaluator(InMemoryScenes(scenes), view, World(), batching, torch.float32)
    for names, tokens in ((("semantic", "instance", "rgb"), 588), (("instance", "rgb"), 392), (("rgb",), 196)):
        assert evaluator.evaluate(model, names).num_tokens == tokens


def test_unused_maps_do_not_change_scores() -> None:
    model, changed = make_tiny_classifier(RGB_SEMANTIC_SPEC), []
    for scene in draw_coloured_scenes(6):
        maps: dict[str, Tensor] = {**scene.maps, "semantic": 2 - scene.maps["semantic"]}
        changed.append(Scene(scene.key, maps, scene.label))
    scores = [
        build_evaluator(scenes).evaluate(model, names)
        for scenes in (draw_coloured_scenes(6), changed)
        for names in (("rgb",), ("semantic",))
    ]
    assert scores[0].loss == scores[2].loss
    assert scores[1].loss != scores[3].loss


def test_scores_per_class_are_computed_from_the_confusion_matrix() -> None:
    confusion = torch.tensor([[3, 1, 0, 0], [0, 2, 2, 0], [0, 0, 0, 0], [1, 0, 2, 4]])
    scores = ClassificationScores(confusion, num_top5_correct=15, loss=0.5, num_tokens=4)
    assert (scores.num_images, scores.top1, scores.top5) == (15, 9 / 15, 1.0)
    assert scores.per_class_accuracy().tolist()[:2] == [0.75, 0.5]
    assert scores.per_class_accuracy()[2].isnan()
    assert scores.most_confused_labels() == [(1, 1), (2, 2), (0, 0), (2, 2)]


def test_metrics_have_intervals_and_tags() -> None:
    scores = ClassificationScores(
        torch.diag(torch.tensor([50, 50, 0, 0, 0, 0])), num_top5_correct=100, loss=0.5, num_tokens=4
    )
    worse = ClassificationScores(torch.ones(6, 6, dtype=torch.long), num_top5_correct=30, loss=1.5, num_tokens=8)
    best = BestScore(7, 0.5, is_averaged=True)
    metrics = {
        metric.label: metric for metric in build_finetune_metrics(scores, worse, {("rgb", "semantic"): worse}, best)
    }
    assert list(metrics) == [
        *("top-1", "top-5", "loss"),
        *("top-1, averaged weights", "top-5, averaged weights", "loss, averaged weights"),
        *("top-1, input rgb, semantic", "top-5, input rgb, semantic", "loss, input rgb, semantic"),
        "best top-1",
    ]
    first = metrics["top-1"]
    assert first.value == 100
    assert first.interval == pytest.approx((96.3005, 100), abs=1e-3)
    assert metrics["top-5, averaged weights"].value == pytest.approx(100 * 30 / 36)
    assert metrics["best top-1"].value == 50
    assert metrics["best top-1"].notes == (
        "step 7, averaged weights: chosen on the test images, so it is biased upwards",
    )


def test_errors_name_the_image_without_a_label() -> None:
    scenes = draw_coloured_scenes(3)
    scenes[1] = Scene("nameless", scenes[1].maps)
    with pytest.raises(UserError) as caught:
        build_evaluator(scenes).evaluate(make_tiny_classifier(), ("rgb",))
    assert str(caught.value) == "nameless: has no label. Label it, or leave it out"
