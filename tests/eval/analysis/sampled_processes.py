"""Evaluation of sampled images in two processes."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.models.vision_transformer import VisionTransformer

from c2fmae.core.distributed import World
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.eval.analysis.config import AttentionEvaluation, RepresentationEvaluation, SampledEvaluation
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.backbone import wrap_vit
from tests.models.tiny_models import make_tiny_vit

WORLD_SIZE = 2


def backbone_from_vit(vit: VisionTransformer) -> Backbone:
    """Return a backbone with the weights of a ViT, whose images are standardised to [-1, 1]."""
    encoder = EncoderConfig(name="test_vit", has_norm=True, keep_positions=True)
    half = (0.5, 0.5, 0.5)
    return wrap_vit(vit, BackboneSpec(encoder=encoder, image_size=vit.patch_embed.img_size, mean=half, std=half))


def make_sampled_evaluations() -> Iterator[SampledEvaluation]:
    """Yield evaluations of three batches each, so that one of two ranks has two."""
    settings: dict[str, Any] = {"images": 7, "batch_size": 3, "workers": 0}
    yield AttentionEvaluation(**settings)
    yield RepresentationEvaluation(**settings)


def compute_sampled_metrics(world: World) -> list[Metric]:
    """Return the metrics of all evaluations."""
    backbone = backbone_from_vit(make_tiny_vit(img_size=(32, 32)))
    model = ModelUnderTest.in_memory("tiny", Path("unused"), world=world, backbone=backbone)
    return [metric for evaluation in make_sampled_evaluations() for metric in evaluation.run(model)]


def run_rank(rank: int, folder: Path) -> None:
    """Evaluate as one of two processes."""
    store = dist.FileStore(str(folder / "store"), WORLD_SIZE)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=60))
    torch.save([vars(metric) for metric in compute_sampled_metrics(World(rank, WORLD_SIZE))], folder / f"{rank}.pt")
    dist.destroy_process_group()
