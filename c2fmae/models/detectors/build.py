"""Construction of detectors from pre-trained backbones, for fine-tuning, and from specs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from c2fmae.core.detector_spec import (
    AnchorSpec,
    BoxHeadSpec,
    DetectorSpec,
    MaskHeadSpec,
    PyramidSpec,
    RoiSpec,
    RpnSpec,
    WindowSpec,
)
from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo
from c2fmae.core.specs import RelativePositions
from c2fmae.models.backbones import Backbone, LoadReport
from c2fmae.models.backbones.fine_tuning import build_trimmed, copy_weights, trim_spec
from c2fmae.models.detectors.detector import Detector
from c2fmae.models.detectors.pyramids import create_pyramid, initialise_pyramid
from c2fmae.models.relative_positions import create_relative_positions
from c2fmae.models.windows import check_plain_blocks


def detector_from_backbone(
    backbone: Backbone,
    classes: Sequence[ClassInfo],
    *,
    pyramid: PyramidSpec,
    windows: WindowSpec | None,
    relative: RelativePositions,
    anchors: AnchorSpec,
    rpn: RpnSpec,
    rois: RoiSpec,
    box_head: BoxHeadSpec,
    mask_head: MaskHeadSpec | None,
    drop_path: float,
    image_size: tuple[int, int],
    generator: torch.Generator,
) -> Detector:
    """Return a detector with a copy of a backbone's weights for images and new heads, in evaluation mode.

    It holds only what its maps need; the report lists what was left out. `image_size` is that of the training images,
    for whose grid of patches positions are resized.
    """
    spec = DetectorSpec(
        backbone=trim_spec(backbone, pyramid.depths, normed=False, drop_path=drop_path, image_size=image_size),
        classes=tuple(classes),
        pyramid=pyramid,
        windows=windows,
        relative=relative,
        anchors=anchors,
        rpn=rpn,
        rois=rois,
        box_head=box_head,
        mask_head=mask_head,
    )
    detector = detector_from_spec(spec)
    notes = copy_weights(backbone, detector.backbone)
    notes += _describe_left_out(backbone.state_dict(), detector.backbone.state_dict())
    initialise_pyramid(detector.pyramid, generator)
    detector.initialise_heads(generator)
    report = backbone.load_report
    detector.load_report = LoadReport(**{**vars(report), "notes": [*report.notes, *notes]})
    return detector


def detector_from_spec(spec: DetectorSpec) -> Detector:
    """Return the detector of a spec, in evaluation mode; its weights are not initialised."""
    backbone = build_trimmed(spec.backbone, spec.pyramid.depths)
    if spec.windows is not None:
        check_plain_blocks(backbone.encoder.blocks)
        if invalid := [block for block in spec.windows.global_blocks if block > backbone.depth]:
            raise UserError(
                f"windows.global_blocks: expected blocks from 1 to {backbone.depth}, got {invalid[0]}. Change them"
            )
        backbone.encoder.remove_prefix_tokens()
    height, width = spec.backbone.image_size
    grid = (height // backbone.patch, width // backbone.patch)
    relative = create_relative_positions(spec.relative, backbone.encoder, grid, spec.windows)
    pyramid = create_pyramid(spec.pyramid, backbone.dim, backbone.patch)
    return Detector(spec, backbone, pyramid, relative).eval()


def _describe_left_out(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """Return a note on the parts of a backbone that a detector does not have, if there are any.

    >>> _describe_left_out({"encoder.norm.weight": 0, "encoder.norm.bias": 0, "encoder.blocks.1.x": 0}, {})
    ['not needed and left out: encoder.norm, encoder.blocks.1']
    """
    names = [name.split(".") for name in source if name not in target]
    parts = dict.fromkeys(".".join(name[: 3 if "blocks" in name else 2]) for name in names)
    return [f"not needed and left out: {', '.join(parts)}"] if parts else []
