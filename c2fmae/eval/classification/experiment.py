"""Fine-tuning, one run from top to bottom."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from c2fmae.core.checkpoint import checkpoints_in, facts_of
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError, unknown_name
from c2fmae.core.experiment import Experiment, Outcome, conduct, folder_of, is_new
from c2fmae.core.labels import LabelInfo
from c2fmae.core.loop import Training
from c2fmae.core.run_dir import RunFolder, read_rows
from c2fmae.core.seeding import seed_of
from c2fmae.core.sharding import gather, whole
from c2fmae.core.training import Plan, plan_of
from c2fmae.core.watching import Watch, is_due
from c2fmae.data import BatchStream, CentralView, Scenes
from c2fmae.data.cached import KeptScenes
from c2fmae.data.combine import SelectedScenes
from c2fmae.data.loader import telling_of_dead_workers
from c2fmae.data.stored import StoredScenes
from c2fmae.eval.classification.accuracy import Accuracy, Trial
from c2fmae.eval.classification.best_checkpoint import Best
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.classification.inputs import target_of
from c2fmae.eval.classification.result import (
    leak_of,
    metrics_of,
    protocol_of,
    write_classes,
    write_page,
    write_result,
)
from c2fmae.eval.classification.task import ClassificationTask
from c2fmae.eval.datasets import Opened, open_set, same_names
from c2fmae.eval.digests import tensors_digest
from c2fmae.eval.probes.probe_config import some_of_each
from c2fmae.models.backbones import Backbone, load_backbone, untrained
from c2fmae.models.classifiers import Classifier, ClassifierSpec, classifier_of, classifier_on

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finetuning(Experiment):
    """A config, and what becomes of it with this data and these processes."""

    config: FinetuneConfig
    scenes: Scenes
    """Those to learn from."""
    trial: Trial
    plan: Plan
    classifier: Classifier
    size: tuple[int, int]
    protocol: str
    report: str
    """What was loaded when it began."""
    world: World

    @property
    def settings(self) -> FinetuneConfig:
        """The config."""
        return self.config

    @property
    def model(self) -> nn.Module:
        """The classifier."""
        return self.classifier

    @cached_property
    def task(self) -> ClassificationTask:
        """Name what images show."""
        it = self.config
        return ClassificationTask(
            self.classifier, it.mixing, it.granularity_dropout, it.training.seed, views=it.data.repeats
        )

    @contextmanager
    def batches(self, step: int) -> Iterator[BatchStream]:
        """Give the batches from a step on."""
        pin, data = self.world.device.type == "cuda", self.config.data
        backbone = self.classifier.backbone
        view = data.augmented(backbone.spec.mean, backbone.spec.std, **target_of(backbone, self.size))
        stream = data.training_batches(
            self.scenes, view, self.plan, step, seed=self.config.training.seed, rank=self.world.rank, pin=pin
        )
        with closing(stream), telling_of_dead_workers():
            yield stream

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint says of itself beside its tensors."""
        spec, info = self.classifier.spec, self.scenes.info
        return {
            "config": self.config.model_dump(mode="json"),
            "classifier": spec.model_dump(mode="json"),
            "classes": list(spec.backbone.class_names),
            "labels": list(info.label_names),
            "normalisation": {"mean": list(spec.backbone.mean), "std": list(spec.backbone.std)},
            "samples": len(self.scenes),
            "load_report": self.report,
        }

    def refuse_broken(self, count: int) -> None:
        """End the run where more samples are broken than may be."""
        self.config.data.refuse_broken(count, len(self.scenes))

    def look(self, training: Training, run: RunFolder, watch: Watch, *, is_again: bool = False) -> None:
        """Try the classifier where that is due, keep it if none was better, and at the end write down what it is."""
        step, total = training.step, self.plan.steps
        best = Best(run.path / "best", self.world)
        if is_again:
            best.begin(step)
        if not is_due(step, self.config.watching.held_out_every or self.plan.steps_per_epoch, total):
            return
        names = self.config.data.granularities
        with whole(self.classifier):
            found = self.trial.of(self.classifier, names)
            average = training.average
            averaged = self.trial.of(self.classifier, names, average) if average is not None else None
        rows = read_rows(run.metrics) if is_again and self.world.is_first else []
        if not self.world.share(any("test/top-1" in row for row in rows if row["step"] == step)):
            watch.note(step, _numbers("test", found) | (_numbers("average", averaged) if averaged else {}))
            by_average = f", {100 * averaged.top1:.2f} % by averaged weights" if averaged else ""
            watch.say(f"step {step:,}: {100 * found.top1:.2f} % of {found.count:,} test photos right{by_average}")
        scores = {"model": found.top1} | ({"ema": averaged.top1} if averaged else {})
        best.offer(training, scores, self.facts())
        if step == total:
            self._conclude(run, found, averaged, best)

    def _conclude(self, run: RunFolder, found: Accuracy, averaged: Accuracy | None, best: Best) -> None:
        """Write down what the last weights are worth, class by class."""
        backbone = self.classifier.backbone
        tensors = gather(backbone.state_dict())  # by all processes: whole in the first
        with whole(self.classifier):
            others = {names: self.trial.of(self.classifier, names) for names in self.config.data.test_with}
        if self.world.is_first:
            write_classes(run, found, self.classifier.spec.labels)
            metrics = metrics_of(found, averaged, others, (best.step, best.score))
            digest = tensors_digest(tensors, backbone.spec.model_dump_json())
            write_result(run, self.config, metrics, self.protocol, digest, self.report, self.world.size)

    def write_page(self, run: RunFolder) -> None:
        """Write the page about the run."""
        write_page(run)


def finetune(
    config: FinetuneConfig, out: Path, world: World, *, resume: bool = False, accept_changes: bool = False
) -> Outcome:
    """Fine-tune in a folder, or go on with the run that is there."""
    with folder_of(out, world) as run:
        it = set_up(config, world, run if not is_new(run, world) else None)
        return conduct(it, run, resume=resume, accept_changes=accept_changes)


def set_up(config: FinetuneConfig, world: World, run: RunFolder | None = None) -> Finetuning:
    """Open the data and build the classifier: of its source, or as that of a run that is begun."""
    data, seed = config.data, config.training.seed
    spec, report = _begun(run, world) if run is not None else (None, "")
    if spec is not None:
        _check_same(config, spec)
    backbone = _backbone(config) if spec is None else classifier_of(spec).backbone
    size = data.size(backbone)
    train, test = (_open(part, config, backbone, size) for part in ("train", "test"))
    same_names((train, test), "label_names")
    labels = _labels(train)
    if spec is not None and spec.labels != labels:
        raise UserError(f"train: {train.name} has other labels than this run learned. Resume with the data of before")
    if spec is None:
        generator = torch.Generator().manual_seed(seed_of(seed, "head"))
        classifier = classifier_on(
            backbone,
            labels,
            pool=config.pool,
            granularities=data.granularities,
            drop_path=config.drop_path,
            crop=data.crop,
            generator=generator,
        )
        report = str(classifier.report)
    else:
        classifier = classifier_of(spec)
    freeze(classifier, config.train_blocks)
    scenes = _share(train.scenes, data.fraction, seed)
    plan = plan_of(config.training, num_samples=len(scenes), processes=world.size)
    if config.training.sharded:
        world.shard(classifier)
    classifier.to(world.device)
    if config.training.compile:
        classifier.compile()
    view = CentralView(crop=data.crop, overflow=data.overflow, **target_of(classifier.backbone, size))
    precision = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    trial = Trial(_kept(test.scenes, data.keep), view, world, data.test_batch_size, data.workers, precision)
    names = {"train": f"{train.name} ({len(scenes):,})", "test": str(test)}
    info = train.scenes.info
    protocol = protocol_of(config, plan, size=size, info=info, **names)
    if world.is_first and (leak := leak_of(data.granularities, info)):
        log.warning("%s", leak)
    return Finetuning(config, _kept(scenes, data.keep), trial, plan, classifier, size, protocol, report, world)


def _newest_facts(run: RunFolder) -> dict[str, Any]:
    """Return the newest facts that can be read; which classifier it is, all checkpoints say alike."""
    for path in reversed(checkpoints_in(run.checkpoints)):
        with suppress(UserError):  # whoever resumes says what is wrong with it
            return facts_of(path)
    raise UserError(f"{run.checkpoints}: no checkpoint is whole. Restore one, or begin anew in another --out")


def _check_same(config: FinetuneConfig, spec: ClassifierSpec) -> None:
    """Refuse settings that are not those of the classifier that has begun to learn."""
    backbone, data = spec.backbone, config.data
    begun = {
        "pool": (backbone.pool, config.pool),
        "drop_path": (backbone.encoder.drop_path, config.drop_path),
        "data.crop": (spec.crop, data.crop),
        "data.granularities": (set(backbone.channels), set(data.granularities)),
        "data.image_size": (backbone.image_size, data.image_size or backbone.image_size),
    }
    for name, (before, now) in begun.items():
        if before != now:
            was, given = (", ".join(sorted(each)) if isinstance(each, set) else each for each in (before, now))
            raise UserError(f"{name}: this run has begun with {was}, not {given}. Such a change needs another --out")


def _begun(run: RunFolder, world: World) -> tuple[ClassifierSpec, str]:
    """Return what the classifier of a run is, and what was loaded when it began, by its newest checkpoint."""
    facts = world.share(_newest_facts(run) if world.is_first else None)
    return ClassifierSpec.read(facts["classifier"], source=str(run.path)), facts["load_report"]


def freeze(classifier: Classifier, train_blocks: int | None) -> None:
    """Let the last so many blocks learn alone, with the norms behind them and the head; all, without a number."""
    if train_blocks is None:
        return
    backbone = classifier.backbone
    if train_blocks > backbone.depth:
        raise UserError(f"train_blocks: the backbone has {backbone.depth} blocks, got {train_blocks}")
    classifier.requires_grad_(False)
    blocks = list(backbone.encoder.blocks)
    for part in (*blocks[len(blocks) - train_blocks :], backbone.encoder.norm, backbone.fc_norm, classifier.head):
        part.requires_grad_(True)


def _backbone(config: FinetuneConfig) -> Backbone:
    source = load_backbone(
        config.init,
        allow_missing=config.allow_missing,
        step=config.step,
        average=config.average,
        image_size=config.data.image_size,
    )
    return untrained(source.spec, config.training.seed) if config.from_scratch else source


def _open(part: Literal["train", "test"], config: FinetuneConfig, backbone: Backbone, size: tuple[int, int]) -> Opened:
    data = config.data
    for name in data.granularities:
        if name not in backbone.granularities:
            raise UserError(
                f"data.granularities: {unknown_name('granularity of ' + config.init, name, backbone.granularities)}"
            )
    options = data.options if part == "train" else {**data.options, **data.test_options}
    opened = open_set(part, getattr(data, part), options, size, data.granularities)
    if (known := _known_labels(opened.scenes)) is not None:
        _check_labelled(opened.scenes, known)
    classes = opened.scenes.info.class_names
    if "semantic" in data.granularities and classes != backbone.spec.class_names:
        raise UserError(
            f"{part}: the maps of {opened.name} have {len(classes)} classes, and they are not the "
            f"{len(backbone.spec.class_names)} that {config.init} has learned. Bring the maps to these"
        )
    return opened


def _labels(train: Opened) -> tuple[LabelInfo | None, ...]:
    labels = train.scenes.info.labels
    if not labels:
        raise UserError(f"train: {train.name} has no names of labels. Name them in dataset.json, or take class folders")
    return labels


def _share(scenes: Scenes, fraction: float, seed: int) -> Scenes:
    if fraction == 1:
        return scenes
    labels = _known_labels(scenes)
    if labels is None:  # of scenes that are drawn
        labels = torch.tensor([_label(scenes, index) for index in range(len(scenes))])
        _check_labelled(scenes, labels)
    rows = some_of_each(labels, fraction, seed_of(seed, "labels", 0))
    return SelectedScenes(scenes, np.asarray(rows))


def _known_labels(scenes: Scenes) -> torch.Tensor | None:
    """Return the labels that are known without reading a photo."""
    return scenes.labels if isinstance(scenes, StoredScenes) else None


def _check_labelled(scenes: Scenes, labels: torch.Tensor) -> None:
    if (lacking := (labels < 0).nonzero()).numel():
        raise UserError(f"{scenes.keys[int(lacking[0])]}: has no label. Leave it out, or label it")


def _label(scenes: Scenes, index: int) -> int:
    label = scenes[index].label
    return -1 if label is None else label


def _kept(scenes: Scenes, keep: bool) -> Scenes:
    return KeptScenes(scenes) if keep else scenes


def _numbers(title: str, found: Accuracy) -> dict[str, float]:
    return {f"{title}/top-1": 100 * found.top1, f"{title}/top-5": 100 * found.top5, f"{title}/loss": found.loss}
