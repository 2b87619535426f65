"""Steps of fine-tuning: their loss, however a batch is parted, and whatever is left out of them."""

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
        made = super().split(batch, num_micro_batches=num_micro_batches, step=step, progress=progress, world=world)
        return [dataclasses.replace(each, maps=to_float64(each.maps)) for each in made]


def loss_of(task: ClassificationTask, *, parts: int, step: int = 0, count: int = 8) -> float:
    made = task.split(make_coloured_batch(count), num_micro_batches=parts, step=step, progress=0.0, world=World())
    counts = {"samples": torch.tensor(sum(int(task.compute_counts(part)["samples"]) for part in made))}
    return sum(task.compute_losses(task.classifier, part, counts).total.item() for part in made)


def test_without_mixing_and_smoothing_the_loss_is_the_mean_cross_entropy() -> None:
    task = ClassificationTask(make_tiny_classifier(), NO_MIX, 0.0, seed=0)
    batch = make_coloured_batch(8)
    logits = task.classifier(prepare_classifier_inputs(task.classifier, batch, ("rgb",)))
    expected = F.cross_entropy(logits, torch.tensor([label or 0 for label in batch.labels]))
    assert loss_of(task, parts=1) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("spec", [None, RGB_SEMANTIC_SPEC])
def test_many_small_parts_have_the_loss_of_the_big_batch(spec: object) -> None:
    task = ClassificationTask(
        make_tiny_classifier(RGB_SEMANTIC_SPEC) if spec else make_tiny_classifier(), MixingConfig(), 0.0, seed=0
    )
    for step in range(6):
        whole = loss_of(task, parts=1, step=step)
        for parts in (2, 4, 8):
            assert loss_of(task, parts=parts, step=step) == pytest.approx(whole, rel=1e-5)
    assert len({round(loss_of(task, parts=1, step=step), 5) for step in range(6)}) > 3  # a box may be empty


def test_accumulated_steps_end_in_the_weights_of_big_ones() -> None:
    """Drop path aside, whose noise is another for other parts."""
    ends = []
    for micro in (8, 2):
        torch.manual_seed(0)
        model = make_tiny_classifier().double()
        config = TrainingConfig(
            steps=3, lr=1e-3, batch_size=8, micro_batch=micro, precision="fp32", layer_decay=0.7, clip=1.0
        )
        loop = TrainingLoop(
            Float64Task(model, MixingConfig(), 0.0, 0),
            config,
            plan_training(config, num_samples=8, world_size=1),
        )
        training = TrainingState.create(model, config)
        for report in loop.run(training, [make_coloured_batch(8, seed=n) for n in range(3)]):
            assert report.skip_details is None
        ends.append(model.state_dict())
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-9, atol=1e-9, msg=name)


def test_what_a_step_leaves_out_is_drawn_for_the_step_and_has_gradients_of_zero() -> None:
    task = ClassificationTask(make_tiny_classifier(RGB_SEMANTIC_SPEC), MixingConfig(), 0.5, seed=0)
    seen = set()
    for step in range(30):
        (part,) = task.split(make_coloured_batch(4), num_micro_batches=1, step=step, progress=0.0, world=World())
        (again,) = task.split(make_coloured_batch(4), num_micro_batches=1, step=step, progress=0.0, world=World())
        assert part.maps.keys() == again.maps.keys()
        seen.add(tuple(part.maps))
        task.classifier.zero_grad()
        task.compute_losses(task.classifier, part, {"samples": torch.tensor(4)}).total.backward()
        for name, embedding in task.classifier.backbone.embeddings.items():
            grads = [parameter.grad for parameter in embedding.parameters()]
            assert all(grad is not None for grad in grads)
            assert all(bool(grad.any()) == (name in part.maps) for grad in grads if grad is not None and grad.ndim > 1)
    assert seen == {("semantic",), ("rgb",), ("semantic", "rgb")}


def test_without_dropout_nothing_is_left_out() -> None:
    task = ClassificationTask(make_tiny_classifier(RGB_SEMANTIC_SPEC), MixingConfig(), 0.0, seed=0)
    for step in range(10):
        (part,) = task.split(make_coloured_batch(4), num_micro_batches=1, step=step, progress=0.0, world=World())
        assert tuple(part.maps) == ("semantic", "rgb")


def test_a_photo_without_a_label_is_named() -> None:
    batch = make_coloured_batch(4)
    batch = dataclasses.replace(batch, labels=(*batch.labels[:3], None))
    task = ClassificationTask(make_tiny_classifier(), MixingConfig(), 0.0, seed=0)
    with pytest.raises(UserError) as caught:
        task.split(batch, num_micro_batches=1, step=0, progress=0.0, world=World())
    assert str(caught.value) == "0-0003: has no label. Leave it out, or label it"
