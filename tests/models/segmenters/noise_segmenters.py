"""Small segmenters with random weights and statistics, so that no two outputs are equal by accident."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.ema import init_ema
from c2fmae.core.labels import ClassInfo
from c2fmae.core.specs import HeadSpec
from c2fmae.models.backbones import Backbone
from c2fmae.models.segmenters import Segmenter, segmenter_from_backbone
from tests.exports.noise_sources import make_noise_backbone

CLASSES = tuple(ClassInfo(name=name) for name in ("sky", "tree", "road", "car", "cat"))
SMALL_HEADS = {
    "upernet": {"channels": 16, "auxiliary": {"channels": 8}},
    "linear": {},
    "fcn": {"channels": 16},
    "convnext": {"dim": 64, "depth": 1},
}


def make_segmenter(head: str | HeadSpec = "upernet", backbone: Backbone | None = None, **options: Any) -> Segmenter:
    """A new segmenter of five classes on a ViT of four blocks with patches of 8 pixels."""
    arguments: dict[str, Any] = {
        "head": head if isinstance(head, HeadSpec) else HeadSpec(name=head, options=SMALL_HEADS[head]),
        "depths": (1, 2, 3, 4),
        "normed": False,
        "norm": "batch",
        "relative": "none",
        "drop_path": 0.0,
        "image_size": (32, 32),
        "generator": torch.Generator().manual_seed(0),
    } | options
    backbone = backbone or make_noise_backbone(patch_size=8, depth=4)
    return segmenter_from_backbone(backbone, CLASSES, **arguments)


def make_noise_segmenter(head: str | HeadSpec = "upernet", **options: Any) -> Segmenter:
    """The same with random weights and statistics of the norms, in evaluation mode."""
    segmenter = make_segmenter(head, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in segmenter.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.normal_(1, 0.1, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
        if segmenter.relative is not None:
            for parameter in segmenter.relative.parameters():
                parameter.normal_(0, 1, generator=generator)
    return segmenter


def draw_images(*size: int, batch: int = 2) -> torch.Tensor:
    """Standardised images of noise."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(2))


def write_segmentation_run(path: Path, segmenter: Segmenter, *, step: int = 7, with_ema: bool = False) -> Path:
    """A directory of checkpoints as `eval segment` writes them; averages are the weights plus one."""
    tensors = {f"model/{name}": tensor for name, tensor in segmenter.state_dict().items()}
    if with_ema:
        tensors |= {f"ema/{name}": tensor + 1 for name, tensor in init_ema(segmenter).items()}
    metadata = {
        "kind": "segmentation",
        "backbone": segmenter.spec.backbone.model_dump(mode="json"),
        "segmenter": segmenter.spec.model_dump(mode="json", exclude={"backbone"}),
        "config": {"kind": "segmentation"},
        "samples": 10,
    }
    save_checkpoint(path, Checkpoint(step, tensors, metadata))
    return path
