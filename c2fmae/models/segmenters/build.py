"""Construction of segmenters from pre-trained backbones, for fine-tuning, and from specs."""

from collections.abc import Sequence

import torch

from c2fmae.core.labels import ClassInfo
from c2fmae.core.specs import HeadSpec, NormKind, RelativePositions, SegmenterSpec
from c2fmae.models.backbones import Backbone, LoadReport
from c2fmae.models.backbones.fine_tuning import build_trimmed, copy_weights, trim_spec
from c2fmae.models.relative_positions import create_relative_positions
from c2fmae.models.segmenters.heads.registry import HeadLayout, choose_head
from c2fmae.models.segmenters.initialise import initialise_head
from c2fmae.models.segmenters.segmenter import Segmenter


def segmenter_from_backbone(
    backbone: Backbone,
    classes: Sequence[ClassInfo],
    *,
    head: HeadSpec,
    depths: Sequence[int],
    normed: bool,
    norm: NormKind,
    relative: RelativePositions,
    drop_path: float,
    image_size: tuple[int, int],
    generator: torch.Generator,
) -> Segmenter:
    """Return a segmenter with a copy of a backbone's weights for images and a new head, in evaluation mode.

    It holds only what its maps need: blocks up to the last of `depths`, and a norm after the last block if `normed`
    applies to it. `image_size` is that of the training crops.
    """
    backbone_spec = trim_spec(backbone, depths, normed=normed, drop_path=drop_path, image_size=image_size)
    spec = SegmenterSpec(
        backbone=backbone_spec,
        classes=tuple(classes),
        head=HeadSpec.from_dict(choose_head(head).model_dump(mode="json")),  # with all options
        depths=tuple(depths),
        normed=normed,
        norm=norm,
        relative=relative,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())  # for heads of plug-ins that initialise themselves
        segmenter = segmenter_from_spec(spec)
    notes = copy_weights(backbone, segmenter.backbone)
    for module in (segmenter.pyramid, segmenter.head, segmenter.auxiliary):
        if module is not None:
            initialise_head(module, generator)
    report = backbone.load_report
    segmenter.load_report = LoadReport(**{**vars(report), "notes": [*report.notes, *notes]})
    return segmenter


def segmenter_from_spec(spec: SegmenterSpec) -> Segmenter:
    """Return the segmenter of a spec, in evaluation mode; its weights are not initialised."""
    backbone = build_trimmed(spec.backbone, spec.depths)
    layout = HeadLayout(dim=backbone.dim, num_maps=len(spec.depths), num_classes=len(spec.classes), norm=spec.norm)
    modules = choose_head(spec.head).instantiate(layout)
    height, width = spec.backbone.image_size
    grid = (height // backbone.patch, width // backbone.patch)
    relative = create_relative_positions(spec.relative, backbone.encoder, grid)
    return Segmenter(spec, backbone, modules, relative).eval()
