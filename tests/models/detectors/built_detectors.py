"""Detectors as `eval detect` builds them, and runs as it writes them."""

from pathlib import Path
from typing import Any

import torch

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.ema import init_ema
from c2fmae.models.backbones import Backbone
from c2fmae.models.detectors import Detector, detector_from_backbone
from tests.exports.noise_sources import make_noise_backbone
from tests.models.detectors.noise_detectors import make_spec

FIELDS = ("classes", "pyramid", "windows", "relative", "anchors", "rpn", "rois", "box_head", "mask_head")
FPN = {"name": "fpn", "norm": "group", "depths": [1, 2, 2], "top_level": False}
WINDOWS = {"size": 3, "global_blocks": [2]}


def build_detector(backbone: Backbone | None = None, size: tuple[int, int] = (64, 64), **changes: Any) -> Detector:
    """A new detector on a ViT of two blocks with patches of 8 pixels."""
    simple = {"depths": [2], "top_level": False}
    spec = make_spec(**{**changes, "pyramid": simple | changes.get("pyramid", {})})
    return detector_from_backbone(
        backbone or make_noise_backbone(patch_size=8, dim=16, num_heads=2),
        **{name: getattr(spec, name) for name in FIELDS},
        drop_path=0.1,
        image_size=size,
        generator=torch.Generator().manual_seed(0),
    )


def write_detection_run(
    path: Path, detector: Detector, *, step: int = 7, with_ema: bool = False, testing: dict[str, Any] | None = None
) -> Path:
    """A directory of checkpoints as `eval detect` writes them; averages are the weights plus one."""
    tensors = {f"model/{name}": tensor for name, tensor in detector.state_dict().items()}
    if with_ema:
        tensors |= {f"ema/{name}": tensor + 1 for name, tensor in init_ema(detector).items()}
    metadata = {
        "kind": "detection",
        "backbone": detector.spec.backbone.model_dump(mode="json"),
        "detector": detector.spec.model_dump(mode="json", exclude={"backbone"}),
        "config": {"kind": "detection", "testing": testing or {}},
        "samples": 10,
    }
    save_checkpoint(path, Checkpoint(step, tensors, metadata))
    return path
