from typing import Any

import pytest
import torch
from torch import Tensor

from c2fmae.core.box_masks import BoxMasks
from c2fmae.core.optimiser import build_adamw, build_parameter_groups, set_lr
from c2fmae.models.detectors import CanvasDetections, Detector
from c2fmae.models.detectors.mask_targets import compute_mask_targets
from tests.models.detectors.noise_detectors import draw_inputs, make_detector, slice_inputs
from tests.models.tiny_models import randomise_parameters

LOSSES = {"objectness", "rpn_box", "class", "box", "mask"}
COUNTS = [3, 2, 0, 0]  # the second half of the batch has no objects


def make_double_detector() -> Detector:
    return make_detector().double().train()


def draw_double_inputs() -> dict[str, Any]:
    inputs = draw_inputs(COUNTS)
    return inputs | {name: inputs[name].double() for name in ("images", "boxes")}


def sum_losses(losses: dict[str, Tensor]) -> Tensor:
    """The part of a batch's loss that some of its images have, divided by numbers that are known in advance."""
    divisors = {name: sum(count > 0 for count in COUNTS) if name == "mask" else len(COUNTS) for name in losses}
    return torch.stack([loss.sum() / divisors[name] for name, loss in losses.items()]).sum()


@pytest.mark.parametrize("counts", [[2, 0], [0, 0]])
def test_every_parameter_has_a_gradient_also_without_objects(counts: list[int]) -> None:
    detector = make_detector().train()
    losses = detector(**draw_inputs(counts))
    assert set(losses) == LOSSES
    assert all(loss.shape == (2,) and loss.isfinite().all() for loss in losses.values())
    torch.stack([*losses.values()]).sum().backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_losses_that_need_objects_are_zero_without_any() -> None:
    losses = make_detector().train()(**draw_inputs([2, 0]))
    for name in LOSSES:
        assert losses[name][0] > 0
        assert (losses[name][1] == 0) == (name in ("rpn_box", "box", "mask"))


@pytest.mark.parametrize(
    "name", ["pyramid.project.weight", "rpn.cls_logits.bias", "rpn.bbox_pred.bias", "box_head.box_deltas.bias"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_give_losses_that_are_not(name: str, value: float) -> None:
    """So that the training loop skips the step. Tests neither fail nor have boxes that are not finite."""
    detector = make_detector(rois={"sampling_ratio": 2}).train()
    with torch.no_grad():
        detector.get_parameter(name).fill_(value)
        losses = detector(**draw_inputs([3, 0]))
        assert not torch.stack([*losses.values()]).isfinite().all()
        images, sizes = (draw_inputs([3, 0])[name] for name in ("images", "sizes"))
        found = detector.detect(images, sizes, score_threshold=0.0, nms_threshold=0.5, max_detections=10)
    assert all(detections.boxes.isfinite().all() for detections in found)


def test_targets_of_masks_are_rounded_unless_they_are_soft(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, soft = make_detector().train(), make_detector(mask_head={"binary_targets": False}).train()
    assert detector.spec.mask_head is not None
    assert detector.spec.mask_head.binary_targets
    inputs = draw_inputs([3])
    expected = detector(**inputs)["mask"]
    assert not torch.equal(soft(**inputs)["mask"], expected)

    def compute_rounded_targets(*args: Any, **kwargs: Any) -> Tensor:
        return (compute_mask_targets(*args, **kwargs) >= 0.5).float()

    monkeypatch.setattr("c2fmae.models.detectors.detector.compute_mask_targets", compute_rounded_targets)
    assert torch.equal(soft(**inputs)["mask"], expected)


def test_losses_of_an_image_do_not_depend_on_its_batch() -> None:
    detector, inputs = make_double_detector(), draw_double_inputs()
    together = detector(**inputs)
    for first, last in ((0, 1), (1, 2), (2, 4)):
        alone = detector(**slice_inputs(inputs, first, last))
        for name in LOSSES:
            torch.testing.assert_close(alone[name], together[name][first:last], rtol=0, atol=1e-12)


def test_micro_batches_add_up_to_the_gradients_of_the_batch() -> None:
    gradients = []
    for parts in ([(0, 4)], [(0, 2), (2, 4)]):
        detector = make_double_detector()
        for first, last in parts:
            sum_losses(detector(**slice_inputs(draw_double_inputs(), first, last))).backward()
        gradients.append([p.grad for p in detector.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def test_seeds_choose_the_samples() -> None:
    detector, inputs = make_double_detector(), draw_double_inputs()
    first = detector(**inputs)
    assert all(torch.equal(loss, first[name]) for name, loss in detector(**inputs).items())
    other = detector(**inputs | {"seeds": inputs["seeds"] + 1})
    assert not torch.equal(first["objectness"], other["objectness"])
    assert not torch.equal(first["class"], other["class"])


def detect(detector: Detector, images: Tensor, sizes: Tensor, **changes: Any) -> list[CanvasDetections]:
    options = {"score_threshold": 0.05, "nms_threshold": 0.5, "max_detections": 15} | changes
    return detector.detect(images, sizes, **options)


def make_confident_detector(**changes: Any) -> Detector:
    """A detector whose scores and boxes differ."""
    detector = make_detector(**changes).eval()
    for head in (detector.rpn, detector.box_head, detector.mask_head):
        if head is not None:
            randomise_parameters(head, std=0.2)
    return detector


def test_detections_of_an_image_do_not_depend_on_its_batch() -> None:
    detector, inputs = make_confident_detector(), draw_inputs([0] * 3)
    inputs["sizes"] = torch.tensor([[64, 64], [64, 40], [33, 64]])
    together = detect(detector, inputs["images"], inputs["sizes"])
    order = torch.tensor([2, 0, 1])
    reordered = detect(detector, inputs["images"][order], inputs["sizes"][order])
    for image, found in enumerate(together):
        (alone,) = detect(detector, inputs["images"][image, None], inputs["sizes"][image, None])
        (again,) = detect(detector, inputs["images"][image, None], inputs["sizes"][image, None])
        assert len(found.boxes) > 5
        for other in (alone, reordered[order.tolist().index(image)]):
            assert torch.equal(other.labels, found.labels)
            for name in ("boxes", "scores", "mask_probabilities"):
                torch.testing.assert_close(getattr(other, name), getattr(found, name), rtol=0, atol=1e-4)
        for name in ("boxes", "scores", "labels", "mask_probabilities"):
            assert torch.equal(getattr(alone, name), getattr(again, name))


def test_detections_are_sorted_limited_and_inside_their_images() -> None:
    detector, inputs = make_confident_detector(), draw_inputs([0, 0])
    sizes = torch.tensor([[64, 64], [20, 50]])
    for found, (height, width) in zip(detect(detector, inputs["images"], sizes), sizes.tolist(), strict=True):
        assert 0 < len(found.boxes) <= 15
        assert found.scores.diff().max() <= 0
        assert found.scores.min() > 0.05
        assert found.labels.max() < 3
        assert found.boxes.min() >= 0
        assert (found.boxes.amax(dim=0) <= torch.tensor([width, height] * 2)).all()
        assert found.mask_probabilities is not None
        assert found.mask_probabilities.shape == (len(found.boxes), 8, 8)
        assert 0 <= found.mask_probabilities.min() < found.mask_probabilities.max() <= 1
    assert [len(found.boxes) for found in detect(detector, inputs["images"], sizes, score_threshold=0.999)] == [0, 0]


def test_a_detector_of_boxes_needs_no_masks() -> None:
    detector, inputs = make_confident_detector(mask_head=None), draw_inputs([2, 0])
    losses = detector.train()(**inputs | {"masks": None})
    assert set(losses) == LOSSES - {"mask"}
    (found, _) = detect(detector.eval(), inputs["images"], inputs["sizes"])
    assert found.mask_probabilities is None
    with pytest.raises(ValueError, match="needs the masks of all objects"):
        make_detector().train()(**inputs | {"masks": None})


def draw_difficult_inputs(step: int) -> dict[str, Any]:
    """No objects; 300; one of a pixel and one of the whole image; a pixel at the corner; and in turn none at all."""
    inputs = draw_inputs([0, 300, 2, 1], seed=step)
    pixel, whole, corner = [20.0, 30, 21, 31], [0.0, 0, 64, 64], [63.0, 63, 64, 64]
    inputs["boxes"][300:] = torch.tensor([pixel, whole, corner])
    windows = inputs["boxes"][300:].int()
    masks = [torch.ones(y1 - y0, x1 - x0, dtype=torch.uint8) for x0, y0, x1, y1 in windows.tolist()]
    inputs["masks"] = BoxMasks.cat([inputs["masks"].select(slice(0, 300)), BoxMasks.from_masks(masks, windows)])
    return slice_inputs(inputs, 0, 1) if step % 4 == 3 else inputs


def test_difficult_objects_train() -> None:
    detector = make_detector().train()
    optimiser = build_adamw(build_parameter_groups(detector, weight_decay=0.05), betas=(0.9, 0.999))
    set_lr(optimiser, 1e-2)
    for step in range(20):
        losses = detector(**draw_difficult_inputs(step))
        total = torch.stack([loss.mean() for loss in losses.values()]).sum()
        total.backward()
        assert total.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
        optimiser.step()
        optimiser.zero_grad()


def test_images_that_are_not_finite_stop_neither_training_nor_tests() -> None:
    detector, inputs = make_detector().train(), draw_inputs([2, 0])
    inputs["images"][:] = torch.nan
    losses = detector(**inputs)
    assert losses["class"].tolist()[1] == 0  # there are no proposals
    torch.stack([*losses.values()]).sum().backward()
    assert all(p.grad is not None for p in detector.parameters())
    assert [len(found.boxes) for found in detect(detector.eval(), inputs["images"], inputs["sizes"])] == [0, 0]


def test_losses_fall_when_a_detector_trains_on_one_image() -> None:
    torch.manual_seed(0)
    detector, inputs = make_detector(box_head={"box_loss": {"name": "l1"}}).train(), draw_inputs([3])
    optimiser = build_adamw(build_parameter_groups(detector, weight_decay=0), betas=(0.9, 0.999))
    set_lr(optimiser, 1e-2)
    totals = []
    for step in range(30):
        losses = detector(**inputs | {"seeds": inputs["seeds"] + step})
        total = torch.stack([loss.mean() for loss in losses.values()]).sum()
        total.backward()
        optimiser.step()
        optimiser.zero_grad()
        totals.append(total.item())
    assert sum(totals[-5:]) < 0.6 * sum(totals[:5])
