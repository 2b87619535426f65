"""Parts of a detector beside torchvision's: `python -m benchmarks.bench_detector [roi_align] [step] [paste] [ceiling]`.

- `roi_align`: RoIAlign, forward and backward, beside torchvision's kernel (goal 0.2 for 16 × 64 RoIs of maps of
  64 × 24 × 24, never more than 1.05);
- `step`: a training step of a small detector (96×96, batch 16) beside the same with torchvision's kernel (goal 0.7);
- `paste`: 100 masks in an image of 640×480, to run lengths, beside torchvision's paste and pycocotools' encoder (0.25);
- `ceiling`: IoU of masks with their targets of 28×28 that are pasted back, by the size of the object, for the objects
  of --data (goal 0.985 for targets that are not rounded, 0.99 for those of small objects).

One thread. Times are ratios of minima.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from unittest.mock import patch

import numpy as np
import torch
from jaxtyping import Bool
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes
from torchvision.ops import roi_align as roi_align_kernel

from benchmarks.tables import print_costs
from c2fmae.core.box_masks import BoxMasks
from c2fmae.core.detector_spec import AnchorSpec, BoxHeadSpec, BoxLossSpec, MaskHeadSpec, PyramidSpec, RoiSpec, RpnSpec
from c2fmae.core.labels import ClassInfo
from c2fmae.core.optimiser import build_adamw, build_parameter_groups, set_lr
from c2fmae.core.rle import decode_mask
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.data.objects import open_objects
from c2fmae.eval.cost.speed_and_memory import describe_machine, time_in_turn
from c2fmae.models.backbones import create_untrained_backbone
from c2fmae.models.detectors import Detector, detector_from_backbone, roi_align
from c2fmae.models.detectors.mask_targets import compute_mask_targets
from c2fmae.models.detectors.paste import encode_pasted, paste_mask

NUM_ROUNDS = 7
NUM_GENERATED = 64  # scenes
CANVAS, BATCH, OBJECTS_PER_IMAGE = 96, 16, 3
IMAGE_SIZE, NUM_MASKS = (480, 640), 100
SMALL, MEDIUM = 32**2, 96**2
Variants = Mapping[str, Callable[[], object]]


def draw_boxes(count: int, size: tuple[int, int], sides: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Return boxes inside of an image whose sides are about as long as given."""
    limits = torch.tensor([size[1], size[0]])
    side = sides[0] + (sides[1] - sides[0]) * torch.rand(count, 1, generator=generator)
    ratio = torch.exp(1.4 * torch.rand(count, 1, generator=generator) - 0.7)
    extent = torch.cat([side * ratio, side / ratio], dim=1).minimum(limits)
    corners = torch.rand(count, 2, generator=generator) * (limits - extent)
    return torch.cat([corners, corners + extent], dim=1)


def make_roi_variants(
    images: int, rois: int, channels: int, side: int, sides: tuple[float, float], size: int, ratio: int
) -> Variants:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(images, channels, side, side, generator=generator).requires_grad_()
    boxes = draw_boxes(images * rois, (side, side), sides, generator)
    rows = torch.arange(images).repeat_interleave(rois)
    gradient = torch.randn(images * rois, channels, size, size, generator=generator)
    table = torch.cat([rows[:, None], boxes], dim=1)

    def apply_kernel() -> object:
        return torch.autograd.grad(roi_align_kernel(features, table, size, 1.0, ratio, True), features, gradient)

    def apply_ours() -> object:
        pooled = roi_align.roi_align(features, boxes, rows, stride=1, size=size, sampling_ratio=ratio)
        return torch.autograd.grad(pooled, features, gradient)

    return {"torchvision": apply_kernel, "c2fmae": apply_ours}


def bench_roi_align() -> None:
    for images, rois, channels, side, sides, size in (
        (16, 64, 64, 24, (2, 24), 7),
        (16, 16, 64, 24, (2, 24), 14),
        (4, 64, 64, 24, (1, 6), 7),
        (4, 64, 64, 48, (4, 14), 7),
        (1, 256, 256, 64, (1, 6), 7),
        (1, 256, 256, 64, (4, 28), 7),
        (1, 128, 256, 160, (2, 28), 7),
    ):
        for ratio in (0, 2):
            variants = make_roi_variants(images, rois, channels, side, sides, size, ratio)
            times = time_in_turn(variants, rounds=NUM_ROUNDS, clock=time.process_time)
            title = f"{images} × {rois} RoIs of {sides[0]}-{sides[1]} cells, maps {channels} × {side}², {size}² bins"
            print_costs(f"{title}, sampling_ratio={ratio}", times, peers=["torchvision"], samples=images)


def make_small_detector() -> Detector:
    """Return a detector of the size of the tiny pre-trained models: ViT 128×4, patches of 8, 64 channels."""
    encoder = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, dim=128, depth=4, num_heads=4)
    loss = BoxLossSpec(name="l1")
    return detector_from_backbone(
        create_untrained_backbone(BackboneSpec(encoder=encoder, image_size=(CANVAS, CANVAS))),
        [ClassInfo(name=str(label)) for label in range(12)],
        pyramid=PyramidSpec(
            name="simple", channels=64, norm="layer", depths=(4,), strides=(4, 8, 16, 32), top_level=False
        ),
        windows=None,
        relative="none",
        anchors=AnchorSpec(sizes=(6, 12, 24, 48)),
        rpn=RpnSpec(
            samples_per_image=64, pre_nms_top_n=300, post_nms_top_n=200, test_pre_nms_top_n=300, test_post_nms_top_n=100
        ),
        rois=RoiSpec(canonical_size=24, sampling_ratio=2),
        box_head=BoxHeadSpec(num_convs=0, norm=None, num_fcs=2, fc_dim=128, samples_per_image=64, box_loss=loss),
        mask_head=MaskHeadSpec(roi_size=7, num_convs=2, channels=64, norm="layer"),
        drop_path=0.0,
        image_size=(CANVAS, CANVAS),
        generator=torch.Generator().manual_seed(0),
    )


def make_step_variants() -> Variants:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, CANVAS, CANVAS, generator=generator)
    boxes = draw_boxes(BATCH * OBJECTS_PER_IMAGE, (CANVAS, CANVAS), (12, 60), generator)
    windows = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1).int()
    masks = BoxMasks.from_masks([torch.ones(y1 - y0, x1 - x0) > 0 for x0, y0, x1, y1 in windows.tolist()], windows)
    labels = torch.randint(12, (len(boxes),), generator=generator)
    sizes, counts = torch.full((BATCH, 2), CANVAS), torch.full((BATCH,), OBJECTS_PER_IMAGE)
    detector = make_small_detector().train()
    optimiser = build_adamw(build_parameter_groups(detector, weight_decay=0.05), betas=(0.9, 0.999))
    set_lr(optimiser, 1e-5)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            losses = detector(images, sizes, boxes, labels, counts, masks, torch.arange(BATCH))
        torch.stack([loss.mean() for loss in losses.values()]).sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    def step_with_kernel() -> None:
        with patch.object(roi_align, "_CELLS_PER_SAMPLE", 0):
            step()

    return {"torchvision's RoIAlign": step_with_kernel, "c2fmae": step}


def bench_step() -> None:
    times = time_in_turn(make_step_variants(), rounds=NUM_ROUNDS, clock=time.process_time)
    title = f"A training step, {CANVAS}×{CANVAS}, batch {BATCH}, bfloat16 outside of the heads"
    print_costs(title, times, peers=["torchvision's RoIAlign"], samples=BATCH)


def bench_paste() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = draw_boxes(NUM_MASKS, IMAGE_SIZE, (20, 240), generator)
    coarse = torch.rand(NUM_MASKS, 1, 5, 5, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, (28, 28), mode="bilinear")

    def paste_with_torchvision() -> list[bytes]:
        pasted = paste_masks_in_image(masks, boxes, IMAGE_SIZE)[:, 0] >= 0.5
        return [coco_mask.encode(np.asfortranarray(mask))["counts"] for mask in pasted.numpy().astype(np.uint8)]

    def paste() -> list[bytes]:
        pairs = zip(masks[:, 0].numpy(), boxes.tolist(), strict=True)
        return [encode_pasted(mask, box, IMAGE_SIZE) for mask, box in pairs]

    variants: Variants = {"torchvision, pycocotools": paste_with_torchvision, "c2fmae": paste}
    times = time_in_turn(variants, rounds=NUM_ROUNDS, clock=time.process_time)
    print_costs(f"{NUM_MASKS} masks in 640×480", times, peers=["torchvision, pycocotools"], samples=NUM_MASKS)


def paste_targets(mask: Bool[np.ndarray, "height width"], box: Tensor) -> dict[str, Bool[np.ndarray, "height width"]]:
    """Return masks that are pasted back from their own targets of 28×28."""
    height, width = mask.shape
    x0, y0, x1, y1 = (int(value) for value in box.tolist())
    cropped = BoxMasks.from_masks([torch.from_numpy(mask[y0:y1, x0:x1].copy())], torch.tensor([[x0, y0, x1, y1]]))
    targets = compute_mask_targets(cropped, torch.tensor([0]), box[None], torch.tensor([[height, width]]), size=28)[0]
    results = {}
    for name, target in (("c2fmae", targets), ("c2fmae, rounded to 0 and 1", (targets >= 0.5).float())):
        left, top, pasted = paste_mask(target.numpy(), box.tolist(), (height, width))
        results[name] = np.zeros_like(mask)
        results[name][top : top + pasted.shape[0], left : left + pasted.shape[1]] = pasted
    theirs = project_masks_on_boxes(torch.from_numpy(mask.copy())[None], box[None], torch.tensor([0]), 28)
    results["torchvision"] = (paste_masks_in_image(theirs[:, None], box[None], mask.shape)[0, 0] >= 0.5).numpy()
    return results


def bench_ceiling(data: str) -> None:
    """Print the mean IoU of masks with what is pasted back."""
    ious: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    scenes = open_objects(data, length=NUM_GENERATED) if data == "generated" else open_objects(data)
    for index in range(len(scenes)):
        scene = scenes[index]
        assert scene.objects is not None
        assert scene.objects.masks is not None
        for box, counts in zip(scene.objects.boxes, scene.objects.masks, strict=True):
            mask = decode_mask(counts, *scene.maps["rgb"].shape[1:]).astype(bool)
            area = mask.sum()
            size = "small" if area < SMALL else "medium" if area < MEDIUM else "large"
            for name, pasted in paste_targets(mask, box).items():
                iou = (mask & pasted).sum() / (mask | pasted).sum()
                ious[name][size].append(iou)
                ious[name]["all"].append(iou)
    sizes = ("all", "small", "medium", "large")
    counted = ", ".join(f"{len(ious['c2fmae'][size])} {size}" for size in sizes)
    print(f"\nIoU of objects of {data} with their targets of 28×28 ({counted})")
    print(f"{'':30s}" + "".join(f"{size:>9s}" for size in sizes))
    for name, by_size in ious.items():
        means = (statistics.mean(by_size[size]) if by_size[size] else float("nan") for size in sizes)
        print(f"{name:30s}" + "".join(f"{mean:9.4f}" for mean in means))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["roi_align", "step", "paste", "ceiling"])
    parser.add_argument("--data", default="generated", help="objects for `ceiling`")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(describe_machine(torch.device("cpu")))
    benchmarks = {"roi_align": bench_roi_align, "step": bench_step, "paste": bench_paste}
    for part in options.parts:
        bench_ceiling(options.data) if part == "ceiling" else benchmarks[part]()


if __name__ == "__main__":
    main()
