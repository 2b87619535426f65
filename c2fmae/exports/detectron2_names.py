"""A detector's tensors under the names of detectron2's Mask R-CNN with ViTDet."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from c2fmae.core.detector_spec import DetectorSpec
from c2fmae.core.errors import UserError
from c2fmae.models.detectors import Detector

_RENAMINGS = (
    (r"backbone\.embeddings\.rgb\.proj\.(.*)", r"backbone.net.patch_embed.proj.\1"),
    (r"backbone\.encoder\.(blocks\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\..*)", r"backbone.net.\1"),
    (r"relative\.rows\.(\d+)", r"backbone.net.blocks.\1.attn.rel_pos_h"),
    (r"relative\.columns\.(\d+)", r"backbone.net.blocks.\1.attn.rel_pos_w"),
    (r"rpn\.cls_logits\.(.*)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn\.bbox_pred\.(.*)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"box_head\.class_logits\.(.*)", r"roi_heads.box_predictor.cls_score.\1"),
    (r"box_head\.box_deltas\.(.*)", r"roi_heads.box_predictor.bbox_pred.\1"),
    (r"mask_head\.upsample\.(.*)", r"roi_heads.mask_head.deconv.\1"),
    (r"mask_head\.mask_logits\.(.*)", r"roi_heads.mask_head.predictor.\1"),
)


def to_detectron2_tensors(detector: Detector) -> dict[str, Tensor]:
    """Return the tensors of a detector for detectron2's `GeneralizedRCNN` of ViTDet's config.

    They include a table of positions for the size of the training images, with a row for the class token, which
    detectron2 expects and leaves out. Raise a `UserError` for a detector that detectron2 computes differently.
    """
    spec, backbone = detector.spec, detector.backbone
    if reason := _unsupported_reason(detector):
        raise UserError(
            f"{detector.load_report.source}: detectron2 cannot express this detector: {reason}. Use it with "
            "c2fmae predict"
        )
    height, width = spec.backbone.image_size
    positions = backbone.encoder.positions((height // backbone.patch, width // backbone.patch), torch.device("cpu"))
    table = torch.cat([positions.new_zeros(1, backbone.dim), positions]).unsqueeze(0)
    tensors = {name: tensor for name, tensor in detector.state_dict().items() if name != "backbone.encoder.pos_embed"}
    renamed = {to_detectron2_name(name, spec): tensor.detach().contiguous() for name, tensor in tensors.items()}
    return {"backbone.net.pos_embed": table.detach(), **renamed}


def to_detectron2_name(name: str, spec: DetectorSpec) -> str:
    """Return detectron2's name of a detector's tensor."""
    for pattern, replacement in _RENAMINGS:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    part, *rest = name.split(".")
    match part, rest:
        case "rpn", ["conv", index, _, kind]:
            conv = "conv" if spec.rpn.num_convs == 1 else f"conv.conv{index}"
            return f"proposal_generator.rpn_head.{conv}.{kind}"
        case "box_head" | "mask_head", ["convs", index, module, kind]:
            conv = f"{'conv' if part == 'box_head' else 'mask_fcn'}{int(index) + 1}"
            return f"roi_heads.{part}.{conv}.{kind if module == 'conv' else f'norm.{kind}'}"
        case "box_head", ["fcs", index, kind]:  # each is followed by ReLU
            return f"roi_heads.box_head.fc{int(index) // 2 + 1}.{kind}"
        case "pyramid", ["levels", level, *inner]:
            return _name_of_pyramid(spec, int(level), inner)
    raise UserError(f"{name}: has no counterpart in detectron2. Use the detector with c2fmae predict")


def _name_of_pyramid(spec: DetectorSpec, level: int, inner: list[str]) -> str:
    """Return the name of a tensor of a level: `simfp_N` for the stride 2^N, whose first modules enlarge the map."""
    stride, patch = spec.pyramid.roi_strides[level], spec.backbone.encoder.patch_size
    assert patch is not None
    prefix = f"backbone.simfp_{stride.bit_length() - 1}"
    index, *names = inner
    if index == "0":  # what changes the size of the map
        return ".".join([prefix, *(["0"] if len(names) == 1 else []), *names])
    first = {patch // 4: 4, patch // 2: 1, patch: 0, patch * 2: 1}[stride]
    number, is_norm = divmod(int(index) - 1, 2)
    return ".".join([prefix, str(first + number), *(["norm"] if is_norm else []), *names])


def _unsupported_reason(detector: Detector) -> str:
    """Return the first feature of a detector that detectron2's ViTDet lacks; empty if it can express the detector."""
    spec, patch = detector.spec, detector.backbone.patch
    height, width = spec.backbone.image_size
    strides = [patch // 4, patch // 2, patch, patch * 2]
    norms: Mapping[str, str | None] = {
        "box head": spec.box_head.norm,
        "mask head": spec.mask_head.norm if spec.mask_head is not None else "layer",
    }
    reasons = {
        f"its pyramid is {spec.pyramid.name}, not simple": spec.pyramid.name != "simple",
        f"its pyramid has {spec.pyramid.norm} norms, not layer norms": spec.pyramid.norm != "layer",
        f"its pyramid has strides {[*spec.pyramid.roi_strides]}, not {strides}": [*spec.pyramid.roi_strides] != strides,
        "its ViT has a class token": detector.backbone.num_prefix_tokens > 0,
        "its windows are masked": spec.windows is not None and spec.windows.pad_keys == "masked",
        "its relative positions are a bias": spec.relative == "bias",
        f"it was trained on images of {height}×{width}, which are not square": height != width,
        **{
            f"its {name} has {norm} norms, not layer norms": norm not in ("layer", None) for name, norm in norms.items()
        },
    }
    return next((reason for reason, is_true in reasons.items() if is_true), "")
