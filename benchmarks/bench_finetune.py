"""What does fine-tuning cost beside its arithmetic? `python -m benchmarks.bench_finetune`.

A step of ViT-S with all that the loop does and writes down, beside the same classifier in a loop as one would write it
by hand with timm's Mixup and loss, and beside timm's own ViT in that loop.
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

from benchmarks.tables import report_cost
from c2fmae.core.distributed import World
from c2fmae.core.labels import LabelInfo
from c2fmae.core.loop import Loop, Training, autocast
from c2fmae.core.optimiser import TRUNK, adamw, parameter_groups, set_rate
from c2fmae.core.run_dir import RunFolder
from c2fmae.core.scene import SceneBatch
from c2fmae.core.training import TrainingConfig, plan_of
from c2fmae.core.watching import Watch, WatchingConfig
from c2fmae.eval.classification.mixing import MixConfig
from c2fmae.eval.classification.task import ClassificationTask
from c2fmae.eval.cost.timing import alternate
from c2fmae.models.backbones import BackboneSpec, untrained
from c2fmae.models.classifiers import Classifier, classifier_on
from c2fmae.models.config import EncoderConfig

BATCH, CLASSES = 16, 1000
CONFIG = TrainingConfig(steps=100_000, lr=1e-3, batch_size=BATCH, layer_decay=0.75, clip=1)


def classifier() -> Classifier:
    spec = BackboneSpec(encoder=EncoderConfig(name="vit_small_patch16_224"), image_size=(224, 224))
    return classifier_on(
        untrained(spec),
        [LabelInfo(name=str(index)) for index in range(CLASSES)],
        pool="mean",
        granularities=("rgb",),
        drop_path=0.1,
        crop=0.875,
        generator=torch.Generator().manual_seed(0),
    )


def batches() -> list[SceneBatch]:
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(256, (4, BATCH, 3, 224, 224), dtype=torch.uint8, generator=generator)
    keys, labels = tuple(map(str, range(BATCH))), tuple(range(BATCH))
    return [SceneBatch(keys, {"rgb": each}, labels) for each in photos]


def by_hand(model: nn.Module, groups: list[dict[str, object]]) -> Callable[[], object]:
    """Return a step without counts over processes, reports and rows."""
    mix = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=CLASSES)  # type: ignore[no-untyped-call]
    optimiser, criterion, choose = adamw(groups, betas=(0.9, 0.999)), SoftTargetCrossEntropy(), cycle(batches())  # type: ignore[no-untyped-call]
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    model.train()

    def step() -> object:
        batch = next(choose)
        photos = (batch.maps["rgb"].float() / 255 - mean) / std
        photos, targets = mix(photos, torch.tensor(batch.labels))
        with autocast(CONFIG, torch.device("cpu")):
            loss = criterion(model(photos).float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        set_rate(optimiser, 1e-4)
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step


def loop(folder: Path) -> Callable[[], object]:
    """Return a step of the training loop, and all that a run does after it."""
    model, plan = classifier(), plan_of(CONFIG, num_samples=BATCH, processes=1)
    watch = Watch(RunFolder(folder), WatchingConfig(), plan, done=0, settings={}, is_quiet=False)
    task = ClassificationTask(model, MixConfig(), 0.0, seed=0)
    reports = Loop(task, CONFIG, plan, World()).steps(Training.start(model, CONFIG), watch.timed(cycle(batches())))

    def step() -> object:
        report = next(reports)
        watch.after(report)
        return report

    return step


def main(rounds: int = 15) -> None:
    ours = classifier()
    groups = parameter_groups(ours, weight_decay=0.05, layer_decay=0.75, trunk=TRUNK)
    vit = timm.create_model(
        "vit_small_patch16_224", num_classes=CLASSES, global_pool="avg", fc_norm=True, drop_path_rate=0.1
    )
    theirs = param_groups_layer_decay(vit, weight_decay=0.05, layer_decay=0.75)
    with tempfile.TemporaryDirectory() as folder:
        variants = {
            "by hand": by_hand(ours, groups),
            "c2fmae": loop(Path(folder)),
            "timm's ViT by hand": by_hand(vit, theirs),
        }
        times = alternate(variants, rounds=rounds, clock=time.process_time)  # neighbours do not count
    report_cost(
        f"A fine-tuning step of ViT-S, batch {BATCH}, bf16, processor time", times, peers=["by hand"], samples=BATCH
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
