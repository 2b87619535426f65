"""Conversion of a backbone or classifier to a timm `VisionTransformer`, from which most exports are made."""

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.exports.target import ExportableModel, get_backbone
from c2fmae.models.backbones import Backbone, restrict_granularities
from c2fmae.models.backbones.backbone import vit_from_spec
from c2fmae.models.classifiers import Classifier
from c2fmae.models.encoder import create_vit
from c2fmae.models.segmenters import Segmenter

_POOLING_TO_TIMM = {"cls": "token", "mean": "avg"}


def restrict_to_rgb(model: ExportableModel) -> ExportableModel:
    """Return the model without the embeddings of other granularities than rgb; weights are shared."""
    backbone = get_backbone(model)
    if "rgb" not in backbone.granularities:
        raise UserError(
            f"{backbone.load_report.source}: takes {', '.join(backbone.granularities)} but not rgb. "
            "Use: c2fmae export safetensors"
        )
    restricted_backbone = restrict_granularities(backbone, ("rgb",))
    if isinstance(model, Segmenter):
        return model  # it takes images only
    if not isinstance(model, Classifier):
        return restricted_backbone
    spec = model.spec.model_copy(update={"backbone": restricted_backbone.spec})
    classifier = Classifier(spec, restricted_backbone, model.head).train(model.training)
    classifier.load_report = model.load_report
    return classifier


def timm_model_args(backbone: Backbone) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` besides the architecture's name, all of types that JSON has."""
    spec = backbone.spec
    args = {"img_size": list(spec.image_size), "in_chans": spec.channels["rgb"], "fc_norm": spec.has_fc_norm}
    args |= {**_timm_pooling_args(backbone), **spec.encoder.vit_kwargs()}
    args.pop("norm_eps", None)  # timm has no such argument, only norm_layer, which is a function
    return args


def to_timm_vit(model: ExportableModel) -> VisionTransformer:
    """Return a timm ViT with the weights for rgb images, in evaluation mode; with the head of a classifier."""
    backbone = get_backbone(model)
    spec = backbone.spec
    vit = create_vit(
        spec.encoder.name,
        image_size=spec.image_size,
        channels=spec.channels["rgb"],
        fc_norm=spec.has_fc_norm,
        **spec.encoder.vit_kwargs(),
        **_timm_pooling_args(backbone),
    )
    tensors = _timm_state_dict(backbone, vit)
    if isinstance(model, Classifier):
        vit.reset_classifier(model.num_labels)
        tensors |= {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    vit.load_state_dict(tensors)
    return vit.eval()


def _timm_pooling_args(backbone: Backbone) -> dict[str, Any]:
    with torch.device("meta"):  # only its attributes are read
        default_vit = vit_from_spec(backbone.spec)
    return {"global_pool": _POOLING_TO_TIMM[backbone.spec.pool]} | (
        {"pool_include_prefix": False} if default_vit.pool_include_prefix else {}
    )


def _timm_state_dict(backbone: Backbone, vit: VisionTransformer) -> dict[str, Tensor]:
    prefixes = {"encoder.": "", "embeddings.rgb.": "patch_embed.", "fc_norm.": "fc_norm."}
    tensors = {
        theirs + name.removeprefix(ours): tensor
        for name, tensor in backbone.state_dict().items()
        for ours, theirs in prefixes.items()
        if name.startswith(ours)
    }
    tensors.pop("pos_embed", None)
    if isinstance(backbone.encoder.norm, nn.Identity):
        # A segmenter has no norm that its maps do not need; timm's ViT has one, with weight 1 and bias 0.
        tensors |= {f"norm.{name}": tensor for name, tensor in vit.norm.state_dict().items()}
    if vit.pos_embed is not None:
        table = backbone.encoder.positions(vit.patch_embed.grid_size, torch.device("cpu")).unsqueeze(0)
        # Positions of class and register tokens are already added to these tokens.
        zeros = table.new_zeros(1, vit.pos_embed.shape[1] - table.shape[1], table.shape[2])
        tensors["pos_embed"] = torch.cat([zeros, table], dim=1)
    return tensors
