"""Small backbones and untrained runs with random weights, so that no two outputs are equal by accident."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.labels import ClassInfo
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.data.info import DatasetInfo
from c2fmae.exports.provenance import WeightsProvenance
from c2fmae.methods import MaskedAutoencoding
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.backbone import vit_from_spec, wrap_vit
from c2fmae.pretrain import build_pretraining_metadata
from c2fmae.recipes.config import load_recipe
from tests.methods.tiny_methods import build_tiny_method, perturb_parameters
from tests.models.tiny_models import randomise_parameters

NOISE_ORIGIN = WeightsProvenance(name="noise", details={"Source": "drawn"}, missing_details=["everything"])


def make_noise_backbone(
    name: str = "test_vit",
    *,
    size: tuple[int, int] = (32, 32),
    channels: int = 3,
    keep_positions: bool = False,
    pool: str = "mean",
    has_fc_norm: bool = False,
    **shape: Any,
) -> Backbone:
    """A ViT with random weights that takes images; two blocks deep by default."""
    spec = BackboneSpec.from_dict(
        {
            "encoder": EncoderConfig.from_dict(
                {"name": name, "has_norm": True, "keep_positions": keep_positions, "depth": 2, **shape}
            ),
            "image_size": size,
            "channels": {"rgb": channels},
            "mean": [0.1 * (index + 1) for index in range(channels)],
            "std": [0.2 + 0.05 * index for index in range(channels)],
            "pool": pool,
            "has_fc_norm": has_fc_norm,
        }
    )
    vit = vit_from_spec(spec)
    randomise_parameters(vit, std=0.1)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return wrap_vit(vit, spec)


def draw_noise_images(size: tuple[int, int], channels: int = 3, batch: int = 3, seed: int = 1) -> torch.Tensor:
    """Images on which exports do not verify themselves."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, channels, *size), dtype=torch.uint8, generator=generator)


def write_noise_run(path: Path, method: MaskedAutoencoding | None = None, *, overrides: Sequence[str] = ()) -> Path:
    """A run directory with one checkpoint of a method with perturbed weights, without metrics."""
    method = method or build_tiny_method()
    perturb_parameters(method.model)
    recipe = load_recipe("c2fmae-debug", overrides).model_copy(update={"method": method.config})
    info = DatasetInfo(classes=(ClassInfo(name="sky"), ClassInfo(name="forest")))
    metadata = build_pretraining_metadata(recipe, info, num_samples=1234)
    tensors = {f"model/{name}": tensor for name, tensor in method.model.state_dict().items()}
    save_checkpoint(path / "checkpoints", Checkpoint(20, tensors, metadata))
    (path / "config.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    return path


def is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal to 1e-5 relative to the largest value, or absolutely if that is below 1: some features are not normed."""
    assert one.shape == other.shape
    return bool((one - other).abs().max() < 1e-5 * other.abs().max().clamp(min=1))
