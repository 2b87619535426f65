from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from c2fmae.models.detectors.anchors import create_anchors
from c2fmae.models.detectors.rpn import _CODER, AnchorScores, propose
from tests.models.detectors.noise_detectors import draw_inputs, make_detector, make_spec

CPU = torch.device("cpu")


def test_anchors_equal_torchvisions_where_it_rounds_nothing_and_strides_divide_the_image() -> None:
    sizes, ratios, grids = (32.0, 64.0), (0.25, 1.0, 4.0), [(6, 10), (3, 5)]
    generator = AnchorGenerator(tuple((int(size),) for size in sizes), (ratios,) * 2)
    images = ImageList(torch.zeros(1, 3, 48, 80), [(48, 80)])
    (expected,) = generator(images, [torch.zeros(1, 1, *grid) for grid in grids])
    anchors = create_anchors(grids, strides=(8, 16), sizes=sizes, ratios=ratios, dtype=torch.float32, device=CPU)
    assert torch.equal(torch.cat(anchors), expected)


def test_ratios_keep_the_area_and_are_heights_by_widths() -> None:
    (anchors,) = create_anchors([(1, 1)], strides=(8,), sizes=(6,), ratios=(0.5, 2), dtype=torch.float64, device=CPU)
    sides = anchors[:, 2:] - anchors[:, :2]
    assert sides.prod(dim=1).tolist() == pytest.approx([36, 36])
    assert (sides[:, 1] / sides[:, 0]).tolist() == pytest.approx([0.5, 2])


def test_the_top_level_has_its_stride_although_its_map_is_larger_than_the_image_divided_by_it() -> None:
    rows = 13  # ⌈800 / 64⌉, from which torchvision infers a stride of 61
    (anchors,) = create_anchors([(rows, 1)], strides=(64,), sizes=(512,), ratios=(1,), dtype=torch.float32, device=CPU)
    centres = (anchors[:, 1] + anchors[:, 3]) / 2
    assert centres.tolist() == [64.0 * row for row in range(rows)]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_boxes_are_single_precision_also_in_bfloat16(precision: torch.dtype) -> None:
    detector = make_detector().train()
    seen: dict[str, torch.dtype] = {}

    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: AnchorScores) -> None:
        seen.update(anchors=output.anchors.dtype, logits=output.logits.dtype, deltas=output.deltas.dtype)

    detector.rpn.register_forward_hook(record)
    heads = {"box_head": detector.box_head, "mask_head": detector.mask_head}
    for name, head in heads.items():
        assert head is not None
        head.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: inputs[0].dtype}))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        inputs = draw_inputs([2, 1])
        assert detector.feature_maps(inputs["images"])[0].dtype == precision
        losses = detector(**inputs)
    assert set(seen.values()) == {torch.float32}
    assert seen.keys() == {"anchors", "logits", "deltas", "box_head", "mask_head"}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


@pytest.mark.parametrize(("threshold", "count"), [(0.45, 1), (0.55, 2)])
def test_overlapping_proposals_are_suppressed_from_the_threshold_on(threshold: float, count: int) -> None:
    anchors = torch.tensor([[0.0, 0, 30, 10], [10, 0, 40, 10]])  # an IoU of one half
    scores = AnchorScores(anchors, torch.tensor([[2.0, 1.0]]), torch.zeros(1, 2, 4), (2,))
    spec = make_spec(rpn={"nms_threshold": threshold}).rpn
    for is_training in (False, True):
        proposals = propose(scores, torch.tensor([[50, 50]]), spec, is_training=is_training)
        assert proposals.is_used.sum() == count


def test_deltas_without_error_give_the_objects_of_16_pixels_on_a_large_canvas() -> None:
    generator = torch.Generator().manual_seed(0)
    side, stride, count = 1024, 16, 200
    grid = side // stride
    (anchors,) = create_anchors(
        [(grid, grid)], strides=(stride,), sizes=(32,), ratios=(1,), dtype=torch.float32, device=CPU
    )
    rows = torch.randperm(len(anchors), generator=generator)[:count]
    corners = (anchors[rows, :2] + 32 * torch.rand(count, 2, generator=generator) - 8).clamp(0, side - 16)
    objects = torch.cat([corners, corners + 16], dim=1)
    deltas, logits = torch.zeros(1, len(anchors), 4), torch.full((1, len(anchors)), -5.0)
    deltas[0, rows] = _CODER.encode_single(objects, anchors[rows])
    logits[0, rows] = 5
    scores = AnchorScores(anchors, logits, deltas, (len(anchors),))
    spec = make_spec(rpn={"test_pre_nms_top_n": count, "test_post_nms_top_n": count, "nms_threshold": 1.0}).rpn
    proposals = propose(scores, torch.tensor([[side, side]]), spec, is_training=False)
    assert proposals.is_used.all()
    assert box_iou(objects, proposals.boxes[0]).amax(dim=1).min() > 0.999


class _Waits(TorchDispatchMode):
    """Counts the operations that wait for a device, because the host needs their result or its size."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        is_mask = name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        if is_mask or name in ("nms", "nonzero", "masked_select", "_local_scalar_dense", "_unique2"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_proposals_wait_for_the_device_once_for_each_image() -> None:
    detector, inputs = make_detector(rpn={"pre_nms_top_n": 50}), draw_inputs([0, 0, 0])
    with torch.no_grad():
        scores = detector.rpn(detector.feature_maps(inputs["images"]))
        with _Waits() as waits:
            propose(scores, inputs["sizes"], detector.spec.rpn, is_training=True)
    assert waits.names == ["nms"] * 3


def test_small_boxes_and_those_that_are_not_finite_are_never_proposed() -> None:
    anchors = torch.tensor([[4.0, 4, 4, 20], [0, 0, 30, 10], [0, 0, 30, 10], [60, 0, 80, 10], [10, 20, 40, 50]])
    deltas = torch.zeros(1, 5, 4)
    deltas[0, 1] = float("nan")
    scores = AnchorScores(anchors, torch.tensor([[5.0, 4, 3, 2, 1]]), deltas, (5,))
    proposals = propose(scores, torch.tensor([[50, 50]]), make_spec().rpn, is_training=True)
    assert proposals.is_used[0].nonzero().flatten().tolist() == [0, 1]
    assert torch.equal(proposals.boxes[0, :2], anchors[[2, 4]])
    assert not proposals.boxes[0, 2:].any()
