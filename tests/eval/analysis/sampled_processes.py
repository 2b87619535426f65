"""What each of two processes does: evaluations of some photos, and what it found."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.models.vision_transformer import VisionTransformer

from c2fmae.core.distributed import World
from c2fmae.eval.analysis.attention import AttentionDrift
from c2fmae.eval.analysis.representation import Representation
from c2fmae.eval.analysis.sampled_evaluation import SampledEvaluation
from c2fmae.eval.evaluation import Metric, Subject
from c2fmae.models.backbones import Backbone, BackboneSpec
from c2fmae.models.backbones.backbone import wrap
from c2fmae.models.config import EncoderConfig
from tests.models.tiny_models import tiny_vit

WORLD = 2


def backbone_of(vit: VisionTransformer) -> Backbone:
    """A backbone of a ViT's own weights, which knows photos as numbers from -1 to 1."""
    encoder = EncoderConfig(name="test_vit", has_norm=True, keep_positions=True)
    half = (0.5, 0.5, 0.5)
    return wrap(vit, BackboneSpec(encoder=encoder, image_size=vit.patch_embed.img_size, mean=half, std=half))


def evaluations() -> Iterator[SampledEvaluation]:
    """Three batches each: one process has two of them."""
    settings: dict[str, Any] = {"images": 7, "batch_size": 3}
    yield AttentionDrift(**settings)
    yield Representation(**settings)


def found(world: World) -> list[Metric]:
    """The metrics of all of them."""
    subject = Subject("tiny", backbone_of(tiny_vit(img_size=(32, 32))), Path("unused"), world)
    return [metric for evaluation in evaluations() for metric in evaluation.run(subject)]


def run(rank: int, folder: Path) -> None:
    """Evaluate as one of two processes."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    torch.save([vars(metric) for metric in found(World(rank, WORLD))], folder / f"{rank}.pt")
    dist.destroy_process_group()
