"""Construction of segmenters from pre-trained backbones, for fine-tuning, and from specs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from c2fmae.core.config import replace
from c2fmae.core.errors import UserError, check_patch_multiples
from c2fmae.core.labels import ClassInfo
from c2fmae.core.specs import EncoderConfig, HeadSpec, NormKind, RelativePositions, SegmenterSpec
from c2fmae.models.backbones import Backbone, LoadReport, restrict_granularities
from c2fmae.models.backbones.assemble import resize_positions
from c2fmae.models.backbones.backbone import vit_from_spec, wrap_vit
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
    source = backbone.load_report.source
    if "rgb" not in backbone.granularities:
        raise UserError(
            f"{source}: takes {', '.join(backbone.granularities)} but not rgb. Use a backbone that takes images"
        )
    if invalid := [depth for depth in depths if depth not in range(1, backbone.depth + 1)]:
        raise UserError(
            f"depths: expected blocks from 1 to {backbone.depth}, as {source} has, got {invalid[0]}. Change depths"
        )
    check_patch_multiples(image_size, backbone.patch, f"of {source}")
    restricted = restrict_granularities(backbone, ("rgb",))
    is_truncated, has_norm = max(depths) < backbone.depth, normed and max(depths) == backbone.depth
    grid = (image_size[0] // backbone.patch, image_size[1] // backbone.patch)
    is_stretched = not restricted.spec.encoder.keep_positions and restricted.encoder.pos_grid != grid
    encoder = replace(
        restricted.spec.encoder,
        EncoderConfig,
        depth=max(depths) if is_truncated else restricted.spec.encoder.depth,
        drop_path=drop_path,
        has_norm=has_norm,
        position_grid=restricted.encoder.pos_grid if is_stretched else None,
    )
    backbone_spec = restricted.spec.model_copy(
        update={"encoder": encoder, "image_size": image_size, "has_fc_norm": False}
    )
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
    notes = _copy_weights(restricted, segmenter.backbone)
    for module in (segmenter.pyramid, segmenter.head, segmenter.auxiliary):
        if module is not None:
            initialise_head(module, generator)
    report = backbone.load_report
    segmenter.load_report = LoadReport(**{**vars(report), "notes": [*report.notes, *notes]})
    return segmenter


def segmenter_from_spec(spec: SegmenterSpec) -> Segmenter:
    """Return the segmenter of a spec, in evaluation mode; its weights are not initialised."""
    backbone = wrap_vit(vit_from_spec(spec.backbone), spec.backbone)
    if max(spec.depths) != backbone.depth:
        raise UserError(
            f"depths: the last is {max(spec.depths)}, but the backbone has {backbone.depth} blocks. Use the spec of "
            "these weights"
        )
    if not spec.backbone.encoder.has_norm:
        backbone.encoder.norm = nn.Identity()
    layout = HeadLayout(dim=backbone.dim, num_maps=len(spec.depths), num_classes=len(spec.classes), norm=spec.norm)
    modules = choose_head(spec.head).instantiate(layout)
    height, width = spec.backbone.image_size
    grid = (height // backbone.patch, width // backbone.patch)
    relative = create_relative_positions(spec.relative, backbone.encoder, grid)
    return Segmenter(spec, backbone, modules, relative).eval()


def _copy_weights(source: Backbone, target: Backbone) -> list[str]:
    """Load the weights that a backbone has, with positions for its image size; return notes on new weights."""
    tensors: dict[str, Tensor] = source.state_dict()
    expected = target.state_dict()
    notes = []
    if "encoder.norm.weight" in expected and "encoder.norm.weight" not in tensors:
        tensors |= {name: tensor for name, tensor in expected.items() if name.startswith("encoder.norm.")}
        notes.append("it has no norm of tokens after the last block: a new one with weight 1 and bias 0 was added")
    if "encoder.pos_embed" in expected:
        tensors["encoder.pos_embed"], _ = resize_positions(
            tensors["encoder.pos_embed"], source.encoder.pos_grid, target.encoder.pos_grid
        )
    target.load_state_dict({name: tensors[name] for name in expected})
    return notes
