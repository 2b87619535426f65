"""Loading of backbones from all supported sources."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from c2fmae.core.errors import UserError, check_patch_multiples
from c2fmae.core.run_info import is_run_or_checkpoint
from c2fmae.core.weight_file import read_weight_file
from c2fmae.models.backbones.assemble import SourceContents, backbone_from_c2fmae_names, backbone_from_timm_names
from c2fmae.models.backbones.backbone import Backbone, vit_from_spec
from c2fmae.models.backbones.export_reader import read_export
from c2fmae.models.backbones.hugging_face_reader import read_hugging_face, read_hugging_face_config
from c2fmae.models.backbones.mae_reader import read_mae
from c2fmae.models.backbones.multimae_reader import INPUT_ADAPTER_PREFIX, read_multimae
from c2fmae.models.backbones.run_reader import read_run
from c2fmae.models.backbones.timm_folder_reader import read_timm_folder
from c2fmae.models.backbones.timm_reader import TIMM_PREFIX, read_timm

BackboneBuilder = Callable[[SourceContents, Sequence[str]], Backbone]

log = logging.getLogger(__name__)

SUPPORTED_SOURCES = (
    "a run directory, a checkpoint, timm:NAME, timm:NAME@FILE, an exported directory, a directory with a ViT or ViTMAE "
    "of Hugging Face, or an official file of MAE or MultiMAE"
)


def load_backbone(
    source: str | Path,
    *,
    allow_missing: Sequence[str] = (),
    step: int | None = None,
    use_ema: bool = False,
    image_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> Backbone:
    """Return the ViT of a source, in evaluation mode, with a `load_report`.

    `allow_missing` lists names or patterns of tensors that may be missing or unexpected. `step` and `use_ema` select
    the checkpoint of a run and its averaged weights. Positions are resized to `image_size` (height, width).
    `num_heads` is for files that hold only weights, which do not store it. Pickles that could run code are never
    loaded.
    """
    build, contents = read_source(str(source), step=step, use_ema=use_ema, image_size=image_size, num_heads=num_heads)
    backbone = build(contents, allow_missing)
    log.info("%s", backbone.load_report)
    return backbone


def read_source(
    source: str, *, step: int | None, use_ema: bool, image_size: tuple[int, int] | None, num_heads: int | None
) -> tuple[BackboneBuilder, SourceContents]:
    """Return the contents of a source, and the function that builds a backbone from them."""
    if image_size is not None and min(image_size) < 1:
        size = f"{image_size[0]}×{image_size[1]}"
        raise UserError(f"{source}: image_size: expected a positive height and width, got {size}. Change image_size")
    build, contents = _read_by_format(source, step=step, use_ema=use_ema, image_size=image_size, num_heads=num_heads)
    _check_image_size(image_size, contents)
    return build, contents


def _read_by_format(
    source: str, *, step: int | None, use_ema: bool, image_size: tuple[int, int] | None, num_heads: int | None
) -> tuple[BackboneBuilder, SourceContents]:
    if source.startswith(TIMM_PREFIX):
        return backbone_from_timm_names, read_timm(source, image_size=image_size)
    path = Path(source)
    if not path.exists():
        raise UserError(f"{source}: does not exist. Use {SUPPORTED_SOURCES}")
    if is_run_or_checkpoint(path):
        return backbone_from_c2fmae_names, _with_image_size(image_size, read_run(path, step=step, use_ema=use_ema))
    if (path / "config.json").exists():
        config = read_hugging_face_config(path)
        if str(config.get("format")).startswith("c2fmae-"):
            return backbone_from_c2fmae_names, _with_image_size(image_size, read_export(path))
        if "architecture" in config:
            return backbone_from_timm_names, _with_image_size(image_size, read_timm_folder(path, config))
        return backbone_from_timm_names, _with_image_size(image_size, read_hugging_face(path, config))
    if path.is_dir():
        raise UserError(f"{source}: is a directory of unknown format. Use {SUPPORTED_SOURCES}")
    weights = read_weight_file(path)
    if any(name.startswith(INPUT_ADAPTER_PREFIX) for name in weights.tensors):
        return backbone_from_c2fmae_names, _with_image_size(
            image_size, read_multimae(source, weights, num_heads=num_heads)
        )
    return backbone_from_timm_names, read_mae(source, weights, image_size=image_size, num_heads=num_heads)


def _check_image_size(image_size: tuple[int, int] | None, contents: SourceContents) -> None:
    if image_size is None:
        return
    with torch.device("meta"):
        patch = vit_from_spec(contents.spec.model_copy(update={"image_size": None})).patch_embed.patch_size[0]
    check_patch_multiples(image_size, patch, f"of {contents.source}")


def _with_image_size(image_size: tuple[int, int] | None, contents: SourceContents) -> SourceContents:
    """Return contents whose positions will be resized to this image size."""
    if image_size is None:
        return contents
    spec = contents.spec.model_copy(update={"image_size": image_size})
    return replace(contents, spec=spec, pos_embed_image_size=contents.pos_embed_image_size or contents.spec.image_size)
