"""Steps of fine-tuning: their loss, however a batch is parted, and whatever is left out of them."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.loop import Loop, Training
from c2fmae.core.training import TrainingConfig, plan_of
from c2fmae.eval.classification.inputs import inputs_of
from c2fmae.eval.classification.mixing import MixConfig
from c2fmae.eval.classification.task import ClassificationTask
from tests.eval.classification.tiny_finetuning import MAPS, batch_of, classifier

NO_MIX = MixConfig(mixup=0, cutmix=0, smoothing=0)


def loss_of(task: ClassificationTask, *, parts: int, step: int = 0, count: int = 8) -> float:
    made = task.split(batch_of(count), parts=parts, step=step, progress=0.0, world=World())
    counts = {"samples": torch.tensor(sum(int(task.counts(part)["samples"]) for part in made))}
    return sum(task.losses(task.classifier, part, counts).total.item() for part in made)


def test_without_mixing_and_smoothing_the_loss_is_the_mean_cross_entropy() -> None:
    task = ClassificationTask(classifier(), NO_MIX, 0.0, seed=0)
    batch = batch_of(8)
    logits = task.classifier(inputs_of(task.classifier, batch, ("rgb",)))
    expected = F.cross_entropy(logits, torch.tensor([label or 0 for label in batch.labels]))
    assert loss_of(task, parts=1) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("spec", [None, MAPS])
def test_many_small_parts_have_the_loss_of_the_big_batch(spec: object) -> None:
    task = ClassificationTask(classifier(MAPS) if spec else classifier(), MixConfig(), 0.0, seed=0)
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
        model = classifier()
        config = TrainingConfig(
            steps=3, lr=1e-3, batch_size=8, micro_batch=micro, precision="fp32", layer_decay=0.7, clip=1.0
        )
        loop = Loop(ClassificationTask(model, MixConfig(), 0.0, 0), config, plan_of(config, num_samples=8, processes=1))
        training = Training.start(model, config)
        for report in loop.steps(training, [batch_of(8, seed=n) for n in range(3)]):
            assert report.trouble is None
        ends.append(model.state_dict())
    for name, tensor in ends[0].items():
        found, expected = (_without_keys(name, each) for each in (ends[1][name], tensor))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)


def _without_keys(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Leave the keys' biases out: attention does not depend on them, so AdamW makes steps of what was rounded."""
    return torch.cat([tensor.chunk(3)[0], tensor.chunk(3)[2]]) if name.endswith("qkv.bias") else tensor


def test_what_a_step_leaves_out_is_drawn_for_the_step_and_has_gradients_of_zero() -> None:
    task = ClassificationTask(classifier(MAPS), MixConfig(), 0.5, seed=0)
    seen = set()
    for step in range(30):
        (part,) = task.split(batch_of(4), parts=1, step=step, progress=0.0, world=World())
        (again,) = task.split(batch_of(4), parts=1, step=step, progress=0.0, world=World())
        assert part.maps.keys() == again.maps.keys()
        seen.add(tuple(part.maps))
        task.classifier.zero_grad()
        task.losses(task.classifier, part, {"samples": torch.tensor(4)}).total.backward()
        for name, embedding in task.classifier.backbone.embeddings.items():
            grads = [parameter.grad for parameter in embedding.parameters()]
            assert all(grad is not None for grad in grads)
            assert all(bool(grad.any()) == (name in part.maps) for grad in grads if grad is not None and grad.ndim > 1)
    assert seen == {("semantic",), ("rgb",), ("semantic", "rgb")}


def test_without_dropout_nothing_is_left_out() -> None:
    task = ClassificationTask(classifier(MAPS), MixConfig(), 0.0, seed=0)
    for step in range(10):
        (part,) = task.split(batch_of(4), parts=1, step=step, progress=0.0, world=World())
        assert tuple(part.maps) == ("semantic", "rgb")


def test_a_photo_without_a_label_is_named() -> None:
    batch = batch_of(4)
    batch = dataclasses.replace(batch, labels=(*batch.labels[:3], None))
    task = ClassificationTask(classifier(), MixConfig(), 0.0, seed=0)
    with pytest.raises(UserError) as caught:
        task.split(batch, parts=1, step=0, progress=0.0, world=World())
    assert str(caught.value) == "0-0003: has no label. Leave it out, or label it"
