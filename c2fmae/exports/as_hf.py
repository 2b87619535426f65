"""A folder that transformers' ViTModel takes, for those ViTs that it can express."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.exports.target import Comparison, Target, another_size, compare
from c2fmae.exports.trial import features, trial_photos
from c2fmae.exports.vit import timm_vit
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.of_hugging_face import POOL

_BICUBIC = 3  # as Pillow counts
_RESIZES = "transformers resizes positions in its own way. For features like c2fmae's there, export with --image-size"


def hf_target(backbone: Backbone) -> Target:
    """Return the way to transformers; a ViT that its ViTModel cannot express is refused."""
    transformers = _transformers()
    vit = timm_vit(backbone)
    if reason := inexpressible(vit):
        raise UserError(
            f"{backbone.report.source}: transformers' ViTModel cannot express it: {reason}. Take: c2fmae export timm"
        )
    spec = backbone.spec
    is_square = spec.image_size[0] == spec.image_size[1]

    def usage(folder: str) -> str:
        vector = "[:, 0]" if spec.pool == "cls" else "[:, 1:].mean(dim=1)"
        return "\n".join(
            [
                "from transformers import ViTModel  # ViTImageProcessor of the same folder standardises photos",
                f"model = ViTModel.from_pretrained({json.dumps(folder)}, add_pooling_layer=False).eval()",
                f"features = model(photos).last_hidden_state{vector}  # [batch, {backbone.dim}]",
            ]
        )

    def write(folder: Path) -> None:
        first: Any = vit.blocks[0]
        height, width = spec.image_size
        config = transformers.ViTConfig(
            hidden_size=vit.embed_dim,
            num_hidden_layers=len(vit.blocks),
            num_attention_heads=first.attn.num_heads,
            intermediate_size=first.mlp.fc1.out_features,
            layer_norm_eps=first.norm1.eps,
            image_size=height if is_square else [height, width],
            patch_size=backbone.patch,
            num_channels=spec.channels["rgb"],
            qkv_bias=first.attn.qkv.bias is not None,
            **{POOL: spec.pool},  # transformers keeps it, and has no word for it
        )
        processor = transformers.ViTImageProcessor(
            size={"height": height, "width": width},
            image_mean=list(spec.mean),
            image_std=list(spec.std),
            resample=_BICUBIC,
        )
        with _quiet(transformers):
            # Through the names of the hub's oldest ViTs, which every version reads.
            model = transformers.ViTModel.from_pretrained(
                None, config=config, state_dict=hub_names(vit), add_pooling_layer=False
            )
            model.save_pretrained(folder)
            for file in folder.glob("*.safetensors"):  # it lets nobody else read them
                file.chmod(0o666 & ~_umask())
            processor.save_pretrained(folder)

    def compare_with_transformers(folder: Path) -> Sequence[Comparison]:
        with _quiet(transformers):
            model = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
            processor = transformers.ViTImageProcessor.from_pretrained(folder)
        sizes = [spec.image_size, *([another_size(spec.image_size, backbone.patch)] if is_square else [])]
        comparisons = []
        for size in sizes:
            is_other = size != spec.image_size
            photos = trial_photos(size, spec.channels["rgb"])
            given = processor(list(photos), do_resize=False, return_tensors="pt", input_data_format="channels_first")
            with torch.inference_mode():
                found = model(**given, interpolate_pos_encoding=is_other).last_hidden_state
            expected = features(backbone, backbone.standardise(photos))[0]
            of = f"tokens of photos of {size[0]}×{size[1]}, by model and processor"
            comparisons.append(compare(of, [found], [expected], why=_RESIZES if is_other else ""))
        return comparisons

    notes = ["transformers' own pooling layer is not part of it: it was never trained."]
    if not is_square:
        notes.append(
            f"It takes photos of {spec.image_size[0]}×{spec.image_size[1]} alone: transformers resizes squares."
        )
    return Target(
        backbone=backbone,
        tool=f"transformers {transformers.__version__}",
        weights="model.safetensors",
        library="transformers",
        write=write,
        compare=compare_with_transformers,
        usage=usage,
        notes=notes,
    )


def inexpressible(vit: VisionTransformer) -> str:
    """Return what a ViT has that transformers' ViTModel has not, or nothing."""
    names = list(vit.state_dict())
    checks = {
        "its norm comes behind the pooling": isinstance(vit.norm, nn.Identity),
        "it has no global token": vit.cls_token is None,
        "it has registers": vit.reg_token is not None,
        "it has no positions": vit.pos_embed is None,
        "it has a norm before its blocks": not isinstance(vit.norm_pre, nn.Identity),
        "it has a norm behind its patch embedding": not isinstance(vit.patch_embed.norm, nn.Identity),
        "its patch embedding has no bias": vit.patch_embed.proj.bias is None,
        "it has layer scales": any(".ls1." in name or ".ls2." in name for name in names),
        "it norms queries and keys": any(".q_norm." in name for name in names),
        "it norms within attention or MLP": any(".attn.norm." in name or ".mlp.norm." in name for name in names),
        "its blocks are not those of a plain ViT": not all(_is_plain(block) for block in vit.blocks),
    }
    if found := next((reason for reason, is_so in checks.items() if is_so), ""):
        return found
    blocks: list[Any] = list(vit.blocks)
    norms: list[Any] = [vit.norm, *(norm for block in blocks for norm in (block.norm1, block.norm2))]
    if any(not isinstance(norm, nn.LayerNorm) or norm.bias is None for norm in norms):
        return f"its norms are not LayerNorm with scale and shift but {type(norms[0]).__name__}"
    if len(eps := {norm.eps for norm in norms}) > 1:
        return f"its norms add different eps, {', '.join(map(str, sorted(eps)))}"
    if other := next((b.mlp.act for b in blocks if not _is_gelu(b.mlp.act)), None):
        return f"its activation is not the exact GELU but {type(other).__name__}"
    biases = [(b.attn.proj.bias, b.mlp.fc1.bias, b.mlp.fc2.bias) for b in blocks]
    return "its projections have no biases" if any(bias is None for each in biases for bias in each) else ""


def hub_names(vit: VisionTransformer) -> dict[str, Tensor]:
    """Return a ViT's tensors under the names that ViTs have on the model hub since the first."""
    blocks: list[Any] = list(vit.blocks)
    modules: dict[str, Any] = {"embeddings.patch_embeddings.projection": vit.patch_embed.proj, "layernorm": vit.norm}
    tensors: dict[str, Any] = {"embeddings.cls_token": vit.cls_token, "embeddings.position_embeddings": vit.pos_embed}
    if vit.no_embed_class:
        blank = torch.zeros(1, 1, vit.embed_dim)
        tensors["embeddings.position_embeddings"] = torch.cat([blank, tensors["embeddings.position_embeddings"]], dim=1)
    for index, block in enumerate(blocks):
        layer = f"encoder.layer.{index}"
        modules |= {
            f"{layer}.layernorm_before": block.norm1,
            f"{layer}.attention.output.dense": block.attn.proj,
            f"{layer}.layernorm_after": block.norm2,
            f"{layer}.intermediate.dense": block.mlp.fc1,
            f"{layer}.output.dense": block.mlp.fc2,
        }
        for kind, tensor in block.attn.qkv.named_parameters():
            for name, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                tensors[f"{layer}.attention.attention.{name}.{kind}"] = part
    for place, module in modules.items():
        tensors |= {f"{place}.{kind}": tensor for kind, tensor in module.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _is_plain(block: nn.Module) -> bool:
    return type(block) is Block and type(block.attn).__name__ == "Attention" and type(block.mlp) is Mlp


def _is_gelu(act: nn.Module) -> bool:
    return isinstance(act, nn.GELU) and act.approximate == "none"


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError("export hf needs transformers. Install it: pip install 'c2fmae[label]'") from error
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep its progress bars off the terminal: there is nothing to wait for."""
    logging = transformers.utils.logging
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
