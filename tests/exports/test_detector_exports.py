"""Exports of a detector are those of its backbone."""

from pathlib import Path

import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.core.run_info import read_run_info
from c2fmae.exports import export
from c2fmae.exports.as_mae import MAE_FILE
from c2fmae.exports.config_text import summarise_detection
from c2fmae.models.backbones import load_backbone
from tests.exports.noise_sources import make_noise_backbone
from tests.models.detectors.built_detectors import WINDOWS, build_detector, write_detection_run
from tests.models.detectors.noise_detectors import draw_inputs

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("kind", ["timm", "mae"])
def test_a_detection_run_exports_its_backbone_with_a_caution(kind: str, tmp_path: Path) -> None:
    detector, images = build_detector(make_noise_backbone(patch_size=8)), draw_inputs([1])["images"]
    run = write_detection_run(tmp_path / "run", detector)
    assert read_run_info(run).kind == "detection"
    done = export(kind, run, tmp_path / "out")
    assert "This is only the backbone of a detector, without its pyramid, heads and classes." in done.target.cautions
    file = tmp_path / "out" / MAE_FILE
    exported = load_backbone(file, num_heads=2) if kind == "mae" else load_backbone(file.parent)
    with torch.inference_mode():
        (ours,) = detector.backbone.feature_maps(images, [2], normed=False)
        (theirs,) = exported.feature_maps(images, [2], normed=False)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_a_backbone_of_windows_is_not_exported(tmp_path: Path) -> None:
    run = write_detection_run(tmp_path / "run", build_detector(windows=WINDOWS))
    with pytest.raises(UserError, match="Use the backbone that it was trained from"):
        export("timm", run, tmp_path / "out")


def test_a_card_describes_the_training_of_a_detector() -> None:
    config = {
        "init": "/private/mae.pth",
        "drop_path": 0.1,
        "pyramid": {"name": "simple", "channels": 256, "norm": "layer", "depths": [12], "strides": [4, 8]},
        "windows": {"size": 14},
        "relative": "decomposed",
        "mask_head": None,
        "training": {"lr": 1e-4, "batch_size": 64},
        "data": {"train": "/private/coco"},
    }
    rows = summarise_detection(config)
    assert rows["Fine-tuned from"] == "mae.pth"
    assert rows["Pyramid"] == "simple, channels 256, norm layer, depths 12, strides 4, 8"
    assert rows["Attention"] == "relative decomposed, windows of 14 patches"
    assert rows["Mask head"] == "none"
    assert (rows["Data"], rows["Regularisation"]) == ("coco", "drop path 0.1")
