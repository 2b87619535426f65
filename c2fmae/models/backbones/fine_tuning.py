"""Backbones that are parts of segmenters and detectors: what their feature maps need, and no more."""

from collections.abc import Sequence

from torch import Tensor, nn

from c2fmae.core.config import replace
from c2fmae.core.errors import UserError, check_patch_multiples
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.models.backbones.assemble import resize_positions
from c2fmae.models.backbones.backbone import Backbone, restrict_granularities, vit_from_spec, wrap_vit


def trim_spec(
    backbone: Backbone, depths: Sequence[int], *, normed: bool, drop_path: float, image_size: tuple[int, int]
) -> BackboneSpec:
    """Return the spec of the part of a backbone that feature maps of images after these blocks need.

    It has blocks up to the last of `depths`, and a norm after the last block if `normed` applies to it. `image_size` is
    that of the training images.
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
    spec = restrict_granularities(backbone, ("rgb",)).spec
    is_truncated, has_norm = max(depths) < backbone.depth, normed and max(depths) == backbone.depth
    grid = (image_size[0] // backbone.patch, image_size[1] // backbone.patch)
    is_stretched = not spec.encoder.keep_positions and backbone.encoder.pos_grid != grid
    encoder = replace(
        spec.encoder,
        EncoderConfig,
        depth=max(depths) if is_truncated else spec.encoder.depth,
        drop_path=drop_path,
        has_norm=has_norm,
        position_grid=backbone.encoder.pos_grid if is_stretched else None,
    )
    return spec.model_copy(update={"encoder": encoder, "image_size": image_size, "has_fc_norm": False})


def build_trimmed(spec: BackboneSpec, depths: Sequence[int]) -> Backbone:
    """Return the backbone of a spec, in evaluation mode; its weights are not initialised."""
    backbone = wrap_vit(vit_from_spec(spec), spec)
    if max(depths) != backbone.depth:
        raise UserError(
            f"depths: the last is {max(depths)}, but the backbone has {backbone.depth} blocks. Use the spec of "
            "these weights"
        )
    if not spec.encoder.has_norm:
        backbone.encoder.norm = nn.Identity()
    return backbone


def copy_weights(source: Backbone, target: Backbone) -> list[str]:
    """Load the weights that a trimmed backbone has, with positions for its image size; return notes on new weights."""
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
