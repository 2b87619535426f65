"""Fine-tuning runs: open the data, build the classifier, train, evaluate and report."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.experiment import Experiment, RunOutcome, is_new_run, locked_run_dir, run_experiment
from c2fmae.core.labels import LabelInfo
from c2fmae.core.loop import TrainingState
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.core.run_info import read_run_info
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.core.sharding import gather, unsharded
from c2fmae.core.specs import ClassifierSpec, spec_identity
from c2fmae.core.training import TrainingPlan, plan_training
from c2fmae.core.watching import RunLogger, is_due
from c2fmae.data import BatchStream, CentralView, Scenes
from c2fmae.data.cached import CachedScenes
from c2fmae.data.combine import SubsetScenes, read_stored_labels
from c2fmae.data.loader import explain_worker_death
from c2fmae.eval.cache import compute_tensors_digest
from c2fmae.eval.classification.accuracy import ClassificationScores, ClassifierEvaluator
from c2fmae.eval.classification.best_checkpoint import BestCheckpoint
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.classification.result import (
    build_finetune_metrics,
    describe_finetune_protocol,
    describe_label_leak,
    write_finetune_report,
    write_finetune_result,
    write_per_class_csv,
)
from c2fmae.eval.classification.task import ClassificationTask, build_view_options
from c2fmae.eval.datasets import OpenedSet, check_same_names, draw_stratified_rows, open_set
from c2fmae.eval.engine import BatchingConfig
from c2fmae.models.backbones import Backbone, create_untrained_backbone, load_backbone
from c2fmae.models.classifiers import Classifier, classifier_from_backbone, classifier_from_spec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finetuning(Experiment):
    """A fine-tuning experiment with opened data and an initialised classifier."""

    config: FinetuneConfig
    scenes: Scenes
    """The training set."""
    evaluator: ClassifierEvaluator
    plan: TrainingPlan
    classifier: Classifier
    image_size: tuple[int, int]
    protocol: str
    load_report: str
    """The report on the initial weights."""
    world: World

    @property
    def model(self) -> nn.Module:
        """The classifier."""
        return self.classifier

    @cached_property
    def task(self) -> ClassificationTask:
        """Image classification with mixed images."""
        config = self.config
        return ClassificationTask(
            self.classifier,
            config.mixing,
            config.granularity_dropout,
            config.training.seed,
            num_views=config.data.repeats,
        )

    @contextmanager
    def open_batches(self, step: int) -> Iterator[BatchStream[SceneBatch]]:
        """Return the training batches from a step on."""
        pin, data = self.world.device.type == "cuda", self.config.data
        backbone = self.classifier.backbone
        view = data.build_augmented_view(
            backbone.spec.mean, backbone.spec.std, **build_view_options(backbone, self.image_size)
        )
        stream = data.stream_training_batches(
            self.scenes, view, self.plan, step, seed=self.config.training.seed, rank=self.world.rank, pin_memory=pin
        )
        with closing(stream), explain_worker_death():
            yield stream

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of checkpoints."""
        spec = self.classifier.spec
        return {
            "kind": "finetuning",
            "backbone": spec.backbone.model_dump(mode="json"),
            "classifier": spec.model_dump(mode="json", exclude={"backbone"}),
            "config": self.config.model_dump(mode="json", exclude={"backbone"}),
            "labels": list(self.scenes.info.label_names),
            "samples": len(self.scenes),
            "load_report": self.load_report,
        }

    def check_broken(self, num_broken: int) -> None:
        """Raise an error if too many samples are broken."""
        self.config.data.check_broken(num_broken, len(self.scenes))

    def evaluate(self, training: TrainingState, run_dir: RunDir, logger: RunLogger, *, is_start: bool = False) -> None:
        """Evaluate the classifier if this is due, save it if it is the best, and write the result of the last step."""
        step, total = training.step, self.plan.steps
        best_checkpoint = BestCheckpoint(run_dir.path / "best", self.world)
        if is_start:
            best_checkpoint.discard_after(step)
        if not is_due(step, self.config.watching.held_out_every or self.plan.steps_per_epoch, total):
            return
        names = self.config.data.granularities
        with unsharded(self.classifier):
            model_scores = self.evaluator.evaluate(self.classifier, names)
            average = training.ema
            ema_scores = self.evaluator.evaluate(self.classifier, names, average) if average is not None else None
        rows = read_rows(run_dir.metrics) if is_start and self.world.is_main else []
        if not self.world.broadcast_object(any("test/top-1" in row for row in rows if row.get("step") == step)):
            logger.log_metrics(
                step,
                _scores_to_row("test", model_scores) | (_scores_to_row("average", ema_scores) if ema_scores else {}),
            )
            ema_text = f", {100 * ema_scores.top1:.2f} % with averaged weights" if ema_scores else ""
            logger.print_line(
                f"step {step:,}: top-1 {100 * model_scores.top1:.2f} % on {model_scores.num_images:,} test images"
                f"{ema_text}"
            )
        scores = {"model": model_scores.top1} | ({"ema": ema_scores.top1} if ema_scores else {})
        best_checkpoint.update(training, scores, self.metadata())
        if step == total:
            self._write_final_result(run_dir, model_scores, ema_scores, best_checkpoint)

    def _write_final_result(
        self,
        run_dir: RunDir,
        scores: ClassificationScores,
        ema_scores: ClassificationScores | None,
        best_checkpoint: BestCheckpoint,
    ) -> None:
        """Write the result of the last weights, with the accuracy of each class."""
        backbone = self.classifier.backbone
        tensors = gather(backbone.state_dict())  # all processes gather; the main process gets the tensors
        with unsharded(self.classifier):
            scores_by_granularities = {
                names: self.evaluator.evaluate(self.classifier, names) for names in self.config.data.test_with
            }
        if self.world.is_main:
            write_per_class_csv(run_dir, scores, self.classifier.spec.labels)
            metrics = build_finetune_metrics(
                scores, ema_scores, scores_by_granularities, (best_checkpoint.step, best_checkpoint.score)
            )
            digest = compute_tensors_digest(tensors, spec_identity(backbone.spec))
            write_finetune_result(
                run_dir, self.config, metrics, self.protocol, digest, self.load_report, self.world.size
            )

    def write_report(self, run_dir: RunDir) -> None:
        """Write the page about the run."""
        write_finetune_report(run_dir)


def finetune(
    config: FinetuneConfig, output_dir: Path, world: World, *, resume: bool = False, accept_changes: bool = False
) -> RunOutcome:
    """Fine-tune in a run directory, or resume its run."""
    with locked_run_dir(output_dir, world) as run_dir:
        experiment = build_finetuning(config, world, run_dir if not is_new_run(run_dir, world) else None)
        return run_experiment(experiment, run_dir, resume=resume, accept_changes=accept_changes)


def build_finetuning(config: FinetuneConfig, world: World, run_dir: RunDir | None = None) -> Finetuning:
    """Open the data and build the classifier, from its source or like that of an existing run."""
    data, seed = config.data, config.training.seed
    spec, load_report = _read_saved_classifier(run_dir, world) if run_dir is not None else (None, "")
    if spec is not None:
        _check_matches_run(config, spec)
    backbone = _load_initial_backbone(config) if spec is None else classifier_from_spec(spec).backbone
    image_size = data.resolve_image_size(backbone)
    train, test = (_open_labelled_set(split, config, backbone, image_size) for split in ("train", "test"))
    check_same_names((train, test), "label_names")
    labels = _require_label_infos(train)
    if spec is not None and spec.labels != labels:
        raise UserError(
            f"train: {train.name} has other labels than this run was trained on. Resume with the original data"
        )
    if spec is None:
        generator = torch.Generator().manual_seed(derive_seed(seed, "head"))
        classifier = classifier_from_backbone(
            backbone,
            labels,
            pool=config.pool,
            granularities=data.granularities,
            drop_path=config.drop_path,
            crop=data.crop,
            generator=generator,
        )
        load_report = str(classifier.load_report)
    else:
        classifier = classifier_from_spec(spec)
    config = config.model_copy(update={"backbone": classifier.backbone.spec})
    freeze_blocks(classifier, config.train_blocks)
    scenes = _select_fraction(train.scenes, data.fraction, seed)
    plan = plan_training(config.training, num_samples=len(scenes), world_size=world.size)
    if config.training.sharded:
        world.shard_model(classifier)
    classifier.to(world.device)
    if config.training.compile:
        classifier.compile()
    view = CentralView(crop=data.crop, overflow=data.overflow, **build_view_options(classifier.backbone, image_size))
    precision = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    evaluator = ClassifierEvaluator(
        _cache_scenes(test.scenes, data.cache),
        view,
        world,
        BatchingConfig(batch_size=data.test_batch_size, num_workers=data.workers),
        precision,
    )
    names = {"train_name": f"{train.name} ({len(scenes):,})", "test_name": str(test)}
    info = train.scenes.info
    protocol = describe_finetune_protocol(config, plan, image_size=image_size, info=info, **names)
    if world.is_main and (leak_warning := describe_label_leak(data.granularities, info)):
        log.warning("%s", leak_warning)
    return Finetuning(
        config, _cache_scenes(scenes, data.cache), evaluator, plan, classifier, image_size, protocol, load_report, world
    )


def _check_matches_run(config: FinetuneConfig, spec: ClassifierSpec) -> None:
    """Raise a `UserError` for settings that differ from those of the run's classifier."""
    backbone, data = spec.backbone, config.data
    settings = {
        "pool": (backbone.pool, config.pool),
        "drop_path": (backbone.encoder.drop_path, config.drop_path),
        "data.crop": (spec.crop, data.crop),
        "data.granularities": (set(backbone.channels), set(data.granularities)),
        "data.image_size": (backbone.image_size, data.image_size or backbone.image_size),
    }
    for name, values in settings.items():
        if values[0] != values[1]:
            saved, new = (", ".join(sorted(value)) if isinstance(value, set) else value for value in values)
            raise UserError(f"{name}: expected {saved}, as at the start of this run, got {new}. Choose another --out")


def _read_saved_classifier(run_dir: RunDir, world: World) -> tuple[ClassifierSpec, str]:
    """Return the spec of a run's classifier, and the report on its initial weights."""
    info = world.broadcast_object(read_run_info(run_dir.path) if world.is_main else None)
    if info.classifier is None:
        raise UserError(f"{run_dir.checkpoints}: no checkpoint is intact. Restore one, or start again in another --out")
    return info.classifier, info.metadata["load_report"]


def freeze_blocks(classifier: Classifier, train_blocks: int | None) -> None:
    """Train only the last `train_blocks` blocks, the norms after them and the head; everything if it is None."""
    if train_blocks is None:
        return
    backbone = classifier.backbone
    if train_blocks > backbone.depth:
        raise UserError(f"train_blocks: expected at most {backbone.depth}, the backbone's blocks, got {train_blocks}")
    classifier.requires_grad_(False)
    blocks = list(backbone.encoder.blocks)
    for module in (*blocks[len(blocks) - train_blocks :], backbone.encoder.norm, backbone.fc_norm, classifier.head):
        module.requires_grad_(True)


def _load_initial_backbone(config: FinetuneConfig) -> Backbone:
    source = load_backbone(
        config.init,
        allow_missing=config.allow_missing,
        step=config.step,
        use_ema=config.average,
        image_size=config.data.image_size,
    )
    return create_untrained_backbone(source.spec, config.training.seed) if config.from_scratch else source


def _open_labelled_set(
    split: Literal["train", "test"], config: FinetuneConfig, backbone: Backbone, image_size: tuple[int, int]
) -> OpenedSet:
    data = config.data
    for name in data.granularities:
        if name not in backbone.granularities:
            raise UserError(
                "data.granularities: "
                f"{unknown_name_error('granularity of ' + config.init, name, backbone.granularities)}"
            )
    opened = open_set(split, getattr(data, split), image_size, data.granularities, limit=data.limit)
    if (known_labels := read_stored_labels(opened.scenes)) is not None:
        _check_labelled(split, opened.scenes, known_labels)
    classes = opened.scenes.info.class_names
    if "semantic" in data.granularities and classes != backbone.spec.class_names:
        raise UserError(
            f"{split}: the {len(classes)} classes of the maps of {opened.name} are not the "
            f"{len(backbone.spec.class_names)} that {config.init} was trained on. Convert the maps to these classes"
        )
    return opened


def _require_label_infos(train: OpenedSet) -> tuple[LabelInfo | None, ...]:
    labels = train.scenes.info.labels
    if not labels:
        raise UserError(f"train: {train.name} has no label names. Add them to dataset.json, or use class folders")
    return labels


def _select_fraction(scenes: Scenes, fraction: float, seed: int) -> Scenes:
    if fraction == 1:
        return scenes
    labels = read_stored_labels(scenes)
    if labels is None:  # generated scenes
        optional_labels = (scenes[index].label for index in range(len(scenes)))
        labels = torch.tensor([-1 if label is None else label for label in optional_labels])
        _check_labelled("train", scenes, labels)
    rows = draw_stratified_rows(labels, fraction, derive_seed(seed, "labels", 0))
    return SubsetScenes(scenes, np.asarray(rows))


def _check_labelled(split: str, scenes: Scenes, labels: torch.Tensor) -> None:
    if (unlabelled := (labels < 0).nonzero()).numel():
        first = scenes.keys[int(unlabelled[0])]
        if len(unlabelled) == len(labels):
            raise UserError(
                f"{split}: the data has no class labels (first: {first}), which fine-tuning needs. Use class folders "
                "or labelled shards; for maps use: c2fmae eval dense"
            )
        raise UserError(
            f"{split}: {len(unlabelled)} of {len(labels)} images have no class label (first: {first}). Label them, or "
            "leave them out"
        )


def _cache_scenes(scenes: Scenes, is_enabled: bool) -> Scenes:
    return CachedScenes(scenes) if is_enabled else scenes


def _scores_to_row(prefix: str, scores: ClassificationScores) -> dict[str, float]:
    return {f"{prefix}/top-1": 100 * scores.top1, f"{prefix}/top-5": 100 * scores.top5, f"{prefix}/loss": scores.loss}
