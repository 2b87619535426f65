"""How often a classifier is right, against counting by hand."""

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
from c2fmae.eval.classification.accuracy import ClassificationScores, ClassifierEvaluator
from c2fmae.eval.classification.result import build_finetune_metrics
from c2fmae.eval.classification.task import build_view_options, prepare_classifier_inputs
from c2fmae.eval.engine import BatchingConfig
from tests.eval.classification.tiny_finetuning import RGB_SEMANTIC_SPEC, make_coloured_batch, make_tiny_classifier
from tests.eval.tiny_backbones import InMemoryScenes, draw_coloured_scenes

pytestmark = pytest.mark.numeric


def trial(scenes: Sequence[Scene], *, batch_size: int = 5, workers: int = 0, size: int = 16) -> ClassifierEvaluator:
    source: Scenes = InMemoryScenes(scenes)
    view = CentralView(**build_view_options(make_tiny_classifier().backbone, (size, size)))
    batching = BatchingConfig(batch_size=batch_size, num_workers=workers)
    return ClassifierEvaluator(source, view, World(), batching, torch.float32)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
@pytest.mark.parametrize("workers", [0, 2])
def test_it_counts_what_a_loop_over_photos_counts(batch_size: int, workers: int) -> None:
    model = make_tiny_classifier()
    found = trial(draw_coloured_scenes(21), batch_size=batch_size, workers=workers).evaluate(model, ("rgb",))
    batch = make_coloured_batch(21)
    with torch.no_grad():
        logits = model(prepare_classifier_inputs(model, batch, ("rgb",)))
    confusion = torch.zeros(3, 3, dtype=torch.long)
    for truth, answer in zip(batch.labels, logits.argmax(dim=1).tolist(), strict=True):
        confusion[truth or 0, answer] += 1
    assert torch.equal(found.confusion, confusion)
    assert found.num_images == 21
    assert found.top1 == pytest.approx(confusion.trace().item() / 21)
    assert found.top5 == 1  # of three
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([label or 0 for label in batch.labels]))
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)
    assert not model.training


def test_with_many_labels_the_first_five_count() -> None:
    model = make_tiny_classifier(labels=[LabelInfo(name=str(index)) for index in range(9)])
    found = trial(draw_coloured_scenes(27, labels=9)).evaluate(model, ("rgb",))
    scenes = draw_coloured_scenes(27, labels=9)
    photos = torch.stack([scene.maps["rgb"] for scene in scenes])
    with torch.no_grad():
        ranks = model(model.backbone.standardise(photos)).argsort(dim=1, descending=True)[:, :5].tolist()
    assert found.num_top5_correct == sum(scene.label in rank for scene, rank in zip(scenes, ranks, strict=True))
    assert 0 < found.num_top5_correct < 27


def test_maps_are_prepared_as_the_vit_knows_them() -> None:
    spec = RGB_SEMANTIC_SPEC.model_copy(
        update={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "channels": {"instance": 9, "rgb": 3}}
    )
    model, batch = make_tiny_classifier(spec), make_coloured_batch(2)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (spec.mean, spec.std))
    found = prepare_classifier_inputs(model, batch, ("rgb",))
    assert list(found) == ["rgb"]
    torch.testing.assert_close(found["rgb"], (batch.maps["rgb"].float() / 255 - mean) / std)
    assert build_view_options(model.backbone, (16, 16)) == {"size": (16, 16), "label_stride": 4, "max_instances": 9}
    assert build_view_options(make_tiny_classifier().backbone, (16, 16))["max_instances"] == 32


def test_weights_that_are_given_stand_in_for_its_own_and_it_stays_as_it_was() -> None:
    model = make_tiny_classifier().train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    other = {name: each.clone() for name, each in model.named_parameters()}
    other["head.bias"] = torch.tensor([0.0, 1e6, 0.0])
    found = trial(draw_coloured_scenes(9)).evaluate(model, ("rgb",), other)
    assert found.confusion.sum(dim=0).tolist() == [0, 9, 0]
    assert model.training
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_three_granularities_of_a_photo_of_224_are_588_tokens() -> None:
    """Table I's last row."""
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
    tried = ClassifierEvaluator(InMemoryScenes(scenes), view, World(), batching, torch.float32)
    for names, tokens in ((("semantic", "instance", "rgb"), 588), (("instance", "rgb"), 392), (("rgb",), 196)):
        assert tried.evaluate(model, names).num_tokens == tokens


def test_a_map_that_is_not_asked_for_changes_nothing() -> None:
    model, changed = make_tiny_classifier(RGB_SEMANTIC_SPEC), []
    for scene in draw_coloured_scenes(6):
        maps: dict[str, Tensor] = {**scene.maps, "semantic": 2 - scene.maps["semantic"]}
        changed.append(Scene(scene.key, maps, scene.label))
    found = [
        trial(scenes).evaluate(model, names)
        for scenes in (draw_coloured_scenes(6), changed)
        for names in (("rgb",), ("semantic",))
    ]
    assert found[0].loss == found[2].loss
    assert found[1].loss != found[3].loss


def test_class_by_class() -> None:
    confusion = torch.tensor([[3, 1, 0, 0], [0, 2, 2, 0], [0, 0, 0, 0], [1, 0, 2, 4]])
    found = ClassificationScores(confusion, num_top5_correct=15, loss=0.5, num_tokens=4)
    assert (found.num_images, found.top1, found.top5) == (15, 9 / 15, 1.0)
    assert found.per_class_accuracy().tolist()[:2] == [0.75, 0.5]
    assert found.per_class_accuracy()[2].isnan()
    assert found.most_confused_labels() == [(1, 1), (2, 2), (0, 0), (2, 2)]


def test_numbers_have_intervals_and_say_what_they_are_of() -> None:
    found = ClassificationScores(
        torch.diag(torch.tensor([50, 50, 0, 0, 0, 0])), num_top5_correct=100, loss=0.5, num_tokens=4
    )
    worse = ClassificationScores(torch.ones(6, 6, dtype=torch.long), num_top5_correct=30, loss=1.5, num_tokens=8)
    metrics = {
        each.label: each for each in build_finetune_metrics(found, worse, {("rgb", "semantic"): worse}, (7, 0.5))
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
    assert metrics["best top-1"].notes == ("step 7: chosen on the test photos themselves, so it flatters",)


def test_a_photo_without_a_label_ends_it_with_its_name() -> None:
    scenes = draw_coloured_scenes(3)
    scenes[1] = Scene("nameless", scenes[1].maps)
    with pytest.raises(UserError) as caught:
        trial(scenes).evaluate(make_tiny_classifier(), ("rgb",))
    assert str(caught.value) == "nameless: has no label. Leave it out, or label it"
