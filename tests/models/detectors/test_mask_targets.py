import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align as roi_align_kernel

from c2fmae.core.box_masks import BoxMasks
from c2fmae.core.rle import decode_mask
from c2fmae.data.objects import open_objects
from c2fmae.models.detectors import CanvasDetections, mask_targets
from c2fmae.models.detectors.mask_targets import compute_mask_targets
from c2fmae.models.detectors.paste import finish_detections
from tests.models.detectors.noise_detectors import draw_boxes, draw_masks

SIZE = (40, 56)


def unpack_full_size(masks: BoxMasks, size: tuple[int, int]) -> Tensor:
    full_size = torch.zeros(len(masks), *size)
    for row, (x0, y0, x1, y1) in enumerate(masks.windows.tolist()):
        full_size[row, y0:y1, x0:x1] = masks.unpack(torch.tensor([row]))[0]
    return full_size


@pytest.mark.numeric
@pytest.mark.parametrize("max_pixels", [2**24, 3000])
@pytest.mark.parametrize("aligned", [True, False])
def test_targets_equal_roi_align_of_masks_of_full_size(
    max_pixels: int, aligned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_targets, "_MAX_PIXELS", max_pixels)
    objects = draw_boxes(6, SIZE, seed=0)
    objects[0], objects[1] = torch.tensor([0.0, 0, SIZE[1], SIZE[0]]), torch.tensor([55.0, 39, 56, 40])
    masks = draw_masks(objects)
    rows = torch.arange(60) % 6
    noise = 4 * torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    limits = torch.tensor([SIZE[1], SIZE[0]]).repeat(2)
    boxes = (objects[rows] + noise).clamp(min=0).minimum(limits)
    boxes = torch.cat([boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, 2:].maximum(boxes[:, :2])], dim=1)
    boxes[:6] = objects  # at the edges of the image and of windows
    sizes = torch.tensor([SIZE]).expand(60, -1)
    targets = compute_mask_targets(masks, rows, boxes, sizes, size=7, aligned=aligned)
    rois = torch.cat([rows[:, None], boxes], dim=1)
    expected = roi_align_kernel(unpack_full_size(masks, SIZE)[:, None], rois, 7, 1.0, 0, aligned)[:, 0]
    torch.testing.assert_close(targets, expected, rtol=0, atol=1e-5)
    assert (targets.amax(dim=(1, 2)) > 0).sum() > 40


def test_no_objects_have_no_targets() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    targets = compute_mask_targets(BoxMasks.cat([]), nothing, torch.zeros(0, 4), torch.zeros(0, 2).long(), size=7)
    assert targets.shape == (0, 7, 7)


@pytest.mark.numeric
def test_masks_pasted_back_from_their_targets_are_nearly_exact() -> None:
    """Targets of 28×28 limit how good a mask can be."""
    ious, areas = [], []
    scenes = open_objects("generated", size=96, length=12)
    for scene in (scenes[index] for index in range(12)):
        assert scene.objects is not None
        assert scene.objects.masks is not None
        for box, counts in zip(scene.objects.boxes, scene.objects.masks, strict=True):
            mask = decode_mask(counts, 96, 96).astype(bool)
            x0, y0, x1, y1 = (int(value) for value in box.tolist())
            cropped = BoxMasks.from_masks([torch.from_numpy(mask[y0:y1, x0:x1].copy())], box[None].int())
            targets = compute_mask_targets(cropped, torch.tensor([0]), box[None], torch.tensor([[96, 96]]), size=28)
            canvas = CanvasDetections(box[None], torch.ones(1), torch.zeros(1, dtype=torch.int64), targets)
            (pasted,) = finish_detections(canvas, (1.0, 1.0), (96, 96)).masks or ()
            found = decode_mask(pasted, 96, 96).astype(bool)
            ious.append((found & mask).sum() / (found | mask).sum())
            areas.append(mask.sum())
    is_small = [area < 32**2 for area in areas]
    assert sum(is_small) > 10
    assert sum(ious) / len(ious) > 0.985
    assert sum(iou for iou, small in zip(ious, is_small, strict=True) if small) / sum(is_small) > 0.99
