"""Tiny sets of images with rectangles of two classes, and configs of short trainings of detectors."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from c2fmae.core.scene import Scene
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.eval.detection.config import DetectConfig
from tests.eval.classification.tiny_finetuning import write_pretrained_checkpoint
from tests.eval.tiny_backbones import write_scenes

SPEC = BackboneSpec(
    encoder=EncoderConfig(name="test_vit", patch_size=8, dim=32, depth=2, num_heads=2), image_size=(32, 32)
)
_COLOURS = torch.tensor([[120, 120, 120], [220, 30, 30], [30, 30, 220]], dtype=torch.uint8)

QUICK_OVERRIDES = (
    "pyramid={name: simple, channels: 16, norm: layer, depths: [2], strides: [4, 8], top_level: false}",
    "anchors.sizes=[8, 16]",
    "rpn={samples_per_image: 32, pre_nms_top_n: 60, post_nms_top_n: 30, test_pre_nms_top_n: 60, "
    "test_post_nms_top_n: 20}",
    "rois={canonical_size: 16, sampling_ratio: 2}",
    "box_head={num_convs: 1, conv_channels: 16, norm: layer, fc_dim: 32, samples_per_image: 16}",
    "box_head.box_loss={name: l1}",
    "mask_head={num_convs: 1, channels: 16, roi_size: 7, norm: layer}",
    "drop_path=0",
    "training.epochs=null",
    "training.steps=4",
    "training.warmup_steps=1",
    "training.batch_size=4",
    "training.lr=1e-3",
    "training.schedule=linear",
    "training.milestones=[]",
    "training.precision=fp32",
    "data.canvas=[32, 32]",
    "data.scale=[0.8, 1.4]",
    "data.workers=0",
    "testing.canvas=32",
    "testing.intervals=0",
    "watching.held_out_every=2",
)


def draw_rectangles(count: int, *, seed: int = 0, size: tuple[int, int] = (28, 32)) -> list[Scene]:
    """Return images with up to three rectangles; every fourth has none."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    scenes = []
    for index in range(count):
        semantic, instance = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))
        for number in range(1, 1 + draw(1, 4) if index % 4 else 1):
            height, width = draw(8, 16), draw(8, 16)
            top, left = draw(0, size[0] - height), draw(0, size[1] - width)
            window = (slice(top, top + height), slice(left, left + width))
            semantic[window], instance[window] = draw(1, 3), number
        noise = torch.randint(-25, 26, (3, *size), generator=generator)
        image = (_COLOURS.long()[semantic.long()].permute(2, 0, 1) + noise).clamp(0, 255).to(torch.uint8)
        scenes.append(Scene(f"{seed}-{index:03d}", {"rgb": image, "semantic": semantic, "instance": instance}))
    return scenes


def write_rectangles(root: Path, *, train: int = 8, test: int = 4) -> Path:
    """Write a training and a test set, as images with semantic and instance maps."""
    classes = [{"name": name, "is_thing": name != "grey"} for name in ("grey", "red", "blue")]
    info = {
        "format": 1,
        "name": "rectangles",
        "granularities": ["rgb", "semantic", "instance"],
        "classes": classes,
    }
    for split, count, seed in (("train", train, 0), ("test", test, 1)):
        write_scenes(root / split, draw_rectangles(count, seed=seed))
        (root / split / "dataset.json").write_text(json.dumps(info))
    return root


def write_yolo_boxes(root: Path) -> Path:
    """Write a training and a test set of boxes, in YOLO's format."""
    for split, count, seed in (("train", 8, 0), ("val", 4, 1)):
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for scene in draw_rectangles(count, seed=seed):
            Image.fromarray(scene.maps["rgb"].permute(1, 2, 0).numpy()).save(images / f"{scene.key}.png")
            lines = [f"{number % 2} 0.5 0.5 0.3 0.4\n" for number in range(int(scene.maps["instance"].max()))]
            (labels / f"{scene.key}.txt").write_text("".join(lines))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [red, blue]\n")
    return root


def write_coco(root: Path) -> Path:
    """Write a training and a test set in COCO's layout, with category ids out of order."""
    (root / "annotations").mkdir(parents=True)
    for split, count, seed in (("train2017", 8, 0), ("val2017", 4, 1)):
        (root / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, scene in enumerate(draw_rectangles(count, seed=seed)):
            image = scene.maps["rgb"]
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / split / f"{scene.key}.png")
            images.append({"id": number, "file_name": f"{scene.key}.png", "height": 28, "width": 32})
            for box in [(4, 6, 10, 12), (15, 2, 9, 20)][: number % 3]:
                x, y, width, height = box
                outline = [x, y, x + width, y, x + width, y + height, x, y + height]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 90 if number % 2 else 3,
                        "bbox": [*box],
                        "area": width * height,
                        "iscrowd": 0,
                        "segmentation": [outline],
                    }
                )
        categories = [{"id": 90, "name": "red"}, {"id": 3, "name": "blue"}]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return root


def write_source(root: Path) -> Path:
    """Write a pre-training checkpoint of random weights."""
    return write_pretrained_checkpoint(root, SPEC)


def make_quick_config(source: Path | str, data: Path, *settings: str) -> DetectConfig:
    """Return the config of a training of a few steps, with these overrides."""
    overrides = [f"data.train={data / 'train'}", f"data.test={data / 'test'}", *QUICK_OVERRIDES, *settings]
    return DetectConfig.from_dict({"init": str(source)}, overrides)
