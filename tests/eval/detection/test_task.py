"""The training step of detectors: counts, losses, seeds, padding and micro-batches."""

import pytest
import torch
from torch import Tensor

from c2fmae.core.box_masks import BoxMasks
from c2fmae.core.distributed import World
from c2fmae.core.loop import StepLoss, TrainingLoop, TrainingState
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.data.detection_batch import DetectionBatch, DetectionSample
from c2fmae.eval.detection.task import DetectionMicroBatch, DetectionTask
from c2fmae.models.detectors import Detector
from tests.models.detectors.noise_detectors import draw_boxes, draw_masks, make_detector

pytestmark = pytest.mark.numeric

SIZE = (32, 48)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make_detector(size=SIZE).double().train()


def draw_sample(num_objects: int, seed: int, size: tuple[int, int] = SIZE) -> DetectionSample:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
    boxes = draw_boxes(num_objects, size, seed=seed)
    labels = torch.randint(3, (num_objects,), generator=generator)
    masks = draw_masks(boxes, seed=seed) if num_objects else BoxMasks.from_masks([], torch.zeros(0, 4).int())
    return DetectionSample(f"image {seed}", image, boxes, labels, masks)


def make_batch(*num_objects: int) -> DetectionBatch:
    return DetectionBatch.stack([draw_sample(count, seed) for seed, count in enumerate(num_objects)], size=SIZE)


def split(detector: Detector, batch: DetectionBatch, num_micro_batches: int = 1) -> list[DetectionMicroBatch]:
    task = DetectionTask(detector, seed=3)
    return task.split(batch, num_micro_batches=num_micro_batches, step=5, progress=0.0, world=World())


def compute_step(detector: Detector, micro_batches: list[DetectionMicroBatch]) -> tuple[dict[str, float], Tensor]:
    """Return the losses of a step, with their sum, and the gradient of all parameters."""
    task = DetectionTask(detector, seed=3)
    counts = {
        name: sum((task.compute_counts(part)[name] for part in micro_batches), torch.tensor(0))
        for name in ("images", "with_objects")
    }
    detector.zero_grad()
    losses: list[StepLoss] = [task.compute_losses(detector, part, counts) for part in micro_batches]
    for loss in losses:
        loss.total.backward()
    terms = {name: sum(float(loss.terms[name]) for loss in losses) for name in losses[0].terms}
    gradients = [parameter.grad.flatten() for parameter in detector.parameters() if parameter.grad is not None]
    return {"total": sum(loss.total.item() for loss in losses), **terms}, torch.cat(gradients)


def test_losses_are_means_over_images_and_that_of_masks_over_images_with_objects(detector: Detector) -> None:
    (part,) = split(detector, make_batch(2, 0, 1))
    found, _ = compute_step(detector, [part])
    batch = part.batch
    values = detector(part.images, batch.sizes, batch.boxes, batch.labels, batch.counts, batch.masks, part.seeds)
    assert set(values) == {"objectness", "rpn_box", "class", "box", "mask"}
    expected = {name: loss.sum().item() / (2 if name == "mask" else 3) for name, loss in values.items()}
    assert found == pytest.approx({"total": sum(expected.values()), **expected}, rel=1e-12)
    assert values["mask"][1] == 0


@pytest.mark.parametrize("num_micro_batches", [2, 4])
def test_micro_batches_add_up_to_the_batch(detector: Detector, num_micro_batches: int) -> None:
    batch = make_batch(2, 0, 1, 3)  # the parts have different numbers of objects
    whole, divided = (compute_step(detector, split(detector, batch, count)) for count in (1, num_micro_batches))
    assert divided[0] == pytest.approx(whole[0], rel=1e-9)
    torch.testing.assert_close(divided[1], whole[1], rtol=1e-7, atol=1e-10)


def test_a_batch_without_objects_has_finite_losses_and_a_gradient_for_every_parameter(detector: Detector) -> None:
    losses, gradient = compute_step(detector, split(detector, make_batch(0, 0)))
    assert losses["mask"] == 0
    assert torch.isfinite(torch.tensor(list(losses.values()))).all()
    assert gradient.numel() == sum(parameter.numel() for parameter in detector.parameters())
    assert torch.isfinite(gradient).all()


def test_seeds_follow_from_the_run_the_step_and_the_row_of_the_global_batch(detector: Detector) -> None:
    batch = make_batch(1, 1, 1, 1)
    whole = torch.cat([part.seeds for part in split(detector, batch, 2)])
    assert len(whole.unique()) == 4
    halves = [DetectionBatch.stack([draw_sample(1, seed) for seed in rows], size=SIZE) for rows in ((0, 1), (2, 3))]
    task = DetectionTask(detector, seed=3)
    for rank, half in enumerate(halves):
        (part,) = task.split(half, num_micro_batches=1, step=5, progress=0.0, world=World(rank, 2))
        assert torch.equal(part.seeds, whole[2 * rank : 2 * rank + 2])
    others = [
        DetectionTask(detector, seed).split(batch, num_micro_batches=1, step=step, progress=0.0, world=World())[0]
        for seed, step in ((4, 5), (3, 6))
    ]
    assert not set(whole.tolist()) & {seed for part in others for seed in part.seeds.tolist()}


def test_pixels_beyond_an_image_are_the_mean_colour(detector: Detector) -> None:
    sample = draw_sample(1, 0, (20, 30))
    batch = DetectionBatch.stack([sample], size=SIZE)
    batch.images[:, :, 20:] = 77  # may be anything
    (part,) = split(detector, batch)
    assert torch.equal(part.images[:, :, :20, :30], detector.backbone.standardise(sample.image[None]).double())
    assert not part.images[:, :, 20:].any()
    assert not part.images[:, :, :, 30:].any()


def test_steps_with_no_objects_with_hundreds_and_with_tiny_ones_are_finite() -> None:
    boxes = {
        "none": torch.zeros(0, 4),
        "many": draw_boxes(300, SIZE),
        "one pixel": torch.tensor([[10.0, 10, 11, 11]]),
        "whole image": torch.tensor([[0.0, 0, SIZE[1], SIZE[0]]]),
    }
    samples = [
        DetectionSample(name, draw_sample(0, seed).image, b, torch.zeros(len(b), dtype=torch.int64), draw_masks(b))
        for seed, (name, b) in enumerate(boxes.items())
    ]
    config = TrainingConfig(steps=20, batch_size=4, lr=1e-3, precision="fp32", clip=1.0)
    detector = make_detector(size=SIZE)
    training = TrainingState.create(detector, config)
    batch = DetectionBatch.stack(samples, size=SIZE)
    task = DetectionTask(detector, seed=0)
    plan = plan_training(config, num_samples=4, world_size=1)
    reports = list(TrainingLoop(task, config, plan).run(training, [batch] * 20))
    assert [report.skip_details for report in reports] == [None] * 20
    assert reports[-1].values["loss"] < reports[0].values["loss"]
    trained = {name for name, _ in training.model.named_parameters()}
    moments = {name.split("/")[1] for name in training.gather_tensors() if name.endswith("/exp_avg")}
    assert moments == trained
