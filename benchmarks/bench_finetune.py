"""Overhead of fine-tuning: `python -m benchmarks.bench_finetune`.

A step of ViT-S in the training loop with logging, compared with the same classifier in a plain loop with timm's Mixup
and loss, and with timm's own ViT in that loop.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import timm
import torch
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn

from benchmarks.tables import print_costs
from c2fmae.core.distributed import World
from c2fmae.core.experiment_config import WatchingConfig
from c2fmae.core.labels import LabelInfo
from c2fmae.core.loop import TrainingLoop, TrainingState, autocast
from c2fmae.core.optimiser import build_adamw, build_parameter_groups, set_lr
from c2fmae.core.run_dir import RunDir
from c2fmae.core.scene import SceneBatch
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.core.watching import RunLogger
from c2fmae.eval.classification.config import MixingConfig
from c2fmae.eval.classification.task import ClassificationTask
from c2fmae.eval.cost.speed_and_memory import time_in_turn
from c2fmae.models.backbones import create_untrained_backbone
from c2fmae.models.classifiers import Classifier, classifier_from_backbone

BATCH, CLASSES = 16, 1000
CONFIG = TrainingConfig(steps=100_000, lr=1e-3, batch_size=BATCH, layer_decay=0.75, clip=1)


def make_vit_s_classifier() -> Classifier:
    spec = BackboneSpec(encoder=EncoderConfig(name="vit_small_patch16_224"), image_size=(224, 224))
    return classifier_from_backbone(
        create_untrained_backbone(spec),
        [LabelInfo(name=str(index)) for index in range(CLASSES)],
        pool="mean",
        granularities=("rgb",),
        drop_path=0.1,
        crop=0.875,
        generator=torch.Generator().manual_seed(0),
    )


def make_random_batches() -> list[SceneBatch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, BATCH, 3, 224, 224), dtype=torch.uint8, generator=generator)
    keys, labels = tuple(map(str, range(BATCH))), tuple(range(BATCH))
    return [SceneBatch(keys, {"rgb": batch}, labels) for batch in images]


def make_manual_step(model: nn.Module, groups: list[dict[str, object]]) -> Callable[[], object]:
    """Return a step of a plain loop, without reduced counts, reports and metric rows."""
    mix = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=CLASSES)  # type: ignore[no-untyped-call]
    optimiser, stream = build_adamw(groups, betas=(0.9, 0.999)), cycle(make_random_batches())
    criterion = SoftTargetCrossEntropy()  # type: ignore[no-untyped-call]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    model.train()

    def step() -> object:
        batch = next(stream)
        images = (batch.maps["rgb"].float() / 255 - mean) / std
        images, targets = mix(images, torch.tensor(batch.labels))
        with autocast(CONFIG, torch.device("cpu")):
            loss = criterion(model(images).float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        set_lr(optimiser, 1e-4)
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step


def make_finetune_loop_step(folder: Path) -> Callable[[], object]:
    """Return a step of the training loop, followed by the logging of a run."""
    model, plan = make_vit_s_classifier(), plan_training(CONFIG, num_samples=BATCH, world_size=1)
    watch = RunLogger(RunDir(folder), WatchingConfig(), plan, start_step=0, experiment_config={}, is_quiet=False)
    task = ClassificationTask(model, MixingConfig(), 0.0, seed=0)
    reports = TrainingLoop(task, CONFIG, plan, World()).run(
        TrainingState.create(model, CONFIG), watch.time_batches(cycle(make_random_batches()))
    )

    def step() -> object:
        report = next(reports)
        watch.log_step(report)
        return report

    return step


def main(rounds: int = 15) -> None:
    ours = make_vit_s_classifier()
    groups = build_parameter_groups(ours, weight_decay=0.05, layer_decay=0.75)
    vit = timm.create_model(
        "vit_small_patch16_224", num_classes=CLASSES, global_pool="avg", fc_norm=True, drop_path_rate=0.1
    )
    theirs = param_groups_layer_decay(vit, weight_decay=0.05, layer_decay=0.75)
    with tempfile.TemporaryDirectory() as folder:
        variants = {
            "plain loop": make_manual_step(ours, groups),
            "c2fmae": make_finetune_loop_step(Path(folder)),
            "plain loop, timm's ViT": make_manual_step(vit, theirs),
        }
        times = time_in_turn(variants, rounds=rounds, clock=time.process_time)  # excludes other processes
    print_costs(
        f"A fine-tuning step of ViT-S, batch {BATCH}, bf16, CPU time", times, peers=["plain loop"], samples=BATCH
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
