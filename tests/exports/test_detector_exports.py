"""Exports of a detector are those of its backbone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from c2fmae.core.detector_spec import BoxHeadSpec, DetectorSpec, MaskHeadSpec, PyramidSpec, RpnSpec, WindowSpec
from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo
from c2fmae.core.run_info import read_run_info
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.exports import export
from c2fmae.exports.as_mae import MAE_FILE
from c2fmae.exports.config_text import summarise_detection
from c2fmae.exports.detectron2_names import to_detectron2_name, to_detectron2_tensors
from c2fmae.models.backbones import load_backbone
from c2fmae.models.detectors import detector_from_spec
from tests.exports.noise_sources import make_noise_backbone
from tests.exports.test_weight_files import read_golden
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


def make_vitdet_base() -> DetectorSpec:
    """The spec of ViTDet's Mask R-CNN with ViT-B for COCO."""
    return DetectorSpec(
        backbone=BackboneSpec(encoder=EncoderConfig(patch_size=16), image_size=(1024, 1024)),
        classes=tuple(ClassInfo(name=str(index)) for index in range(80)),
        pyramid=PyramidSpec(name="simple", norm="layer", depths=(12,)),
        windows=WindowSpec(),
        relative="decomposed",
        rpn=RpnSpec(num_convs=2),
        box_head=BoxHeadSpec(norm="layer"),
        mask_head=MaskHeadSpec(norm="layer"),
    )


def test_names_and_shapes_are_those_of_detectron2() -> None:
    spec = make_vitdet_base()
    with torch.device("meta"):
        tensors = detector_from_spec(spec).state_dict()
    ours = {to_detectron2_name(name, spec): tuple(tensor.shape) for name, tensor in tensors.items()}
    golden = read_golden("d2_mask_rcnn_vitdet")
    assert golden.pop("backbone.net.pos_embed") == (1, 1 + 64 * 64, 768)  # computed here
    assert ours == golden
    assert len(ours) == len(tensors)


VITDET: dict[str, Any] = {
    "pyramid": {"norm": "layer", "strides": [2, 4, 8, 16], "channels": 8},
    "anchors": {"sizes": [4, 8, 16, 32]},
    "windows": WINDOWS,
    "relative": "decomposed",
}


def test_tensors_for_detectron2_have_a_table_of_positions() -> None:
    detector = build_detector(**VITDET)
    tensors = to_detectron2_tensors(detector)
    assert len(tensors) == 1 + len(detector.state_dict())
    positions = detector.backbone.encoder.positions((8, 8), torch.device("cpu"))
    assert torch.equal(tensors["backbone.net.pos_embed"][0, 1:], positions)
    assert torch.equal(
        tensors["roi_heads.box_head.conv1.weight"], detector.get_parameter("box_head.convs.0.conv.weight")
    )
    assert torch.equal(tensors["proposal_generator.rpn_head.conv.bias"], detector.get_parameter("rpn.conv.0.0.bias"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"windows": None}, "its ViT has a class token"),
        ({"relative": "bias"}, "its relative positions are a bias"),
        ({"windows": {**WINDOWS, "pad_keys": "masked"}}, "its windows are masked"),
        ({"size": (64, 48)}, "images of 64×48, which are not square"),
        ({"box_head": {"norm": "group"}}, "its box head has group norms, not layer norms"),
    ],
)
def test_detectors_that_detectron2_computes_differently_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"detectron2 cannot express this detector: .*{reason}"):
        to_detectron2_tensors(build_detector(**VITDET | changes))
