"""A limit of the size of models that untrusted configs describe."""

from collections.abc import Callable, Mapping

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.specs import BackboneSpec
from c2fmae.models.backbones.backbone import vit_from_spec

_MAX_COMPUTED_VALUES = 1 << 24  # values of the model that its file may lack: computed positions


def check_model_size(
    location: str,
    spec: BackboneSpec,
    tensors: Mapping[str, Tensor],
    create_model: Callable[[VisionTransformer], nn.Module],
    weights: str = "its checkpoint",
    *,
    decoder_depth: int = 0,
) -> None:
    """Raise if a config describes a model much larger than its weights, before any memory is allocated.

    `create_model` builds the model from the ViT of the spec. `location` and `weights` name the config and the file of
    weights in the error.
    """
    stored_count = sum(tensor.numel() for tensor in tensors.values())
    depth = max(spec.encoder.depth or 0, decoder_depth)
    if depth <= len(tensors):
        with torch.device("meta"):  # shapes alone
            vit = vit_from_spec(spec)  # counted too: it has a table of positions, which the model may not keep
            model_count = sum(weight.numel() for weight in nn.ModuleList([vit, create_model(vit)]).parameters())
        if model_count <= stored_count + _MAX_COMPUTED_VALUES:
            return
        problem = f"a model of {model_count:,} values, but {weights} holds {stored_count:,}"
    else:
        problem = f"{depth:,} blocks, but {weights} holds {len(tensors):,} tensors"
    raise UserError(f"{location}: describes {problem}. Use the config of these weights")
