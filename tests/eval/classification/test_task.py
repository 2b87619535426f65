"""Steps of fine-tuning: losses of micro-batches, accumulated gradients and granularity dropout."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.loop import TrainingLoop, TrainingState
from c2fmae.core.scene import SceneBatch
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.eval.classification.config import MixingConfig
from c2fmae.eval.classification.task import ClassificationMicroBatch, ClassificationTask, prepare_classifier_inputs
from tests.eval.classification.tiny_finetuning import RGB_SEMANTIC_SPEC, make_coloured_batch, make_tiny_classifier
from tests.methods.tiny_methods import to_float64

pytestmark = pytest.mark.numeric

NO_MIX = MixingConfig(mixup=0, cutmix=0, smoothing=0)


class Float64Task(ClassificationTask):
    """The usual task, in double precision."""

    def split(
        self, batch: SceneBatch, *, num_micro_batches: int, step: int, progress: float, world: World
    ) -> list[ClassificationMicroBatch]:
        micro_batches = super().split(
            batch, num_micro_batches=num_micro_batches, step=step, progress=progress, world=world
        )
        return [dataclasses.replace(micro, maps=to_float64(micro.maps)) for micro in micro_batches]


def compute_loss(task: ClassificationTask, num_micro_batches: int = 1, step: int = 0) -> float:
    micro_batches = task.split(
        make_coloured_batch(8), num_micro_batches=num_micro_batches, step=step, progress=0.0, world=World()
    )
    counts = {"samples": torch.tensor(sum(int(task.compute_counts(micro)["samples"]) for micro in micro_batches))}
    return sum(task.compute_losses(task.classifier, micro, counts).total.item() for micro in micro_batches)


def test_without_mixing_and_smoothing_the_loss_is_the_mean_cross_entropy() -> None:
    task = ClassificationTask(make_tiny_classifier(), NO_MIX, 0.0, seed=0)
    batch = make_coloured_batch(8)
    logits = task.classifier(prepare_classifier_inputs(task.classifier, batch, ("rgb",)))
    expected = F.cross_entropy(logits, torch.tensor([label or 0 for label in batch.labels]))
    assert compute_loss(task) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("spec", [None, RGB_SEMANTIC_SPEC])
def test_the_loss_does_not_depend_on_the_number_of_micro_batches(spec: object) -> None:
    task = ClassificationTask(
        make_tiny_classifier(RGB_SEMANTIC_SPEC) if spec else make_tiny_classifier(), MixingConfig(), 0.0, seed=0
    )
    for step in range(6):
        expected = compute_loss(task, step=step)
        for num_micro_batches in (2, 4, 8):
            assert compute_loss(task, num_micro_batches, step) == pytest.approx(expected, rel=1e-5)
    assert len({round(compute_loss(task, step=step), 5) for step in range(6)}) > 3  # a box may be empty


def test_accumulated_steps_give_the_same_weights() -> None:
    """Compare without drop path, whose noise depends on micro-batches."""
    weights = []
    for micro_batch in (8, 2):
        torch.manual_seed(0)
        model = make_tiny_classifier().double()
        config = TrainingConfig(
            steps=3, lr=1e-3, batch_size=8, micro_batch=micro_batch, precision="fp32", layer_decay=0.7, clip=1.0
        )
        loop = TrainingLoop(
            Float64Task(model, MixingConfig(), 0.0, 0),
            config,
            plan_training(config, num_samples=8, world_size=1),
        )
        training = TrainingState.create(model, config)
        for report in loop.run(training, [make_coloured_batch(8, seed=n) for n in range(3)]):
            assert report.skip_details is None
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-9, atol=1e-9, msg=name)


def test_dropped_granularities_depend_on_the_step_and_have_gradients_of_zero() -> None:
    task = ClassificationTask(make_tiny_classifier(RGB_SEMANTIC_SPEC), MixingConfig(), 0.5, seed=0)
    drawn = set()
    for step in range(30):
        (micro_batch,) = task.split(make_coloured_batch(4), num_micro_batches=1, step=step, progress=0.0, world=World())
        (again,) = task.split(make_coloured_batch(4), num_micro_batches=1, step=step, progress=0.0, world=World())
        assert micro_batch.maps.keys() == again.maps.keys()
        drawn.add(tuple(micro_batch.maps))
        task.classifier.zero_grad()
        task.compute_losses(task.classifier, micro_batch, {"samples": torch.tensor(4)}).total.backward()
        for name, embedding in task.classifier.backbone.embeddings.items():
            grads = [parameter.grad for parameter in embedding.parameters()]
            assert all(grad is not None for grad in grads)
            assert all(
                bool(grad.any()) == (name in micro_batch.maps) for grad in grads if grad is not None and grad.ndim > 1
            )
    assert drawn == {("semantic",), ("rgb",), ("semantic", "rgb")}


def test_without_dropout_all_granularities_are_used() -> None:
    task = ClassificationTask(make_tiny_classifier(RGB_SEMANTIC_SPEC), MixingConfig(), 0.0, seed=0)
    for step in range(10):
        (micro_batch,) = task.split(make_coloured_batch(4), num_micro_batches=1, step=step, progress=0.0, world=World())
        assert tuple(micro_batch.maps) == ("semantic", "rgb")


def test_errors_name_the_image_without_a_label() -> None:
    batch = make_coloured_batch(4)
    batch = dataclasses.replace(batch, labels=(*batch.labels[:3], None))
    task = ClassificationTask(make_tiny_classifier(), MixingConfig(), 0.0, seed=0)
    with pytest.raises(UserError) as caught:
        task.split(batch, num_micro_batches=1, step=0, progress=0.0, world=World())
    assert str(caught.value) == "0-0003: has no label. Label it, or leave it out"
