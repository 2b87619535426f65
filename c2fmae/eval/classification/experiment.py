"""Fine-tuning runs: open the data, build the classifier, train, evaluate and report."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.experiment import RunOutcome
from c2fmae.core.labels import LabelInfo
from c2fmae.core.model_preparation import prepare_model
from c2fmae.core.precision import choose_precision
from c2fmae.core.run_dir import RunDir
from c2fmae.core.seeding import derive_seed
from c2fmae.core.sharding import unsharded
from c2fmae.core.specs import ClassifierSpec
from c2fmae.core.training import TrainingPlan, plan_training
from c2fmae.data import CentralView, Scenes, Transform
from c2fmae.data.cached import CachedScenes
from c2fmae.data.combine import SubsetScenes, read_stored_labels
from c2fmae.eval.best_checkpoint import BestCheckpoint
from c2fmae.eval.classification.accuracy import ClassificationScores, ClassifierEvaluator
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
from c2fmae.eval.training_experiment import (
    ScoredExperiment,
    check_unchanged,
    compute_model_digest,
    freeze_blocks,
    read_saved_run,
    train_in_run_dir,
)
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier, classifier_from_backbone, classifier_from_spec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finetuning(ScoredExperiment[ClassificationScores]):
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

    row_key: ClassVar[str] = "test/top-1"

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

    def build_view(self) -> Transform:
        """Return the augmented view."""
        backbone = self.classifier.backbone
        return self.config.data.build_augmented_view(
            backbone.spec.mean, backbone.spec.std, **build_view_options(backbone, self.image_size)
        )

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

    def compute_scores(
        self, run_dir: RunDir, average: Mapping[str, Tensor] | None, *, digest: str | None
    ) -> ClassificationScores:
        """Return the scores with the inputs of training."""
        del run_dir, digest
        return self.evaluator.evaluate(self.classifier, self.config.data.granularities, average)

    def get_score(self, scores: ClassificationScores) -> float:
        """Return the top-1 accuracy."""
        return scores.top1

    def scores_to_row(self, prefix: str, scores: ClassificationScores) -> dict[str, float]:
        """Return accuracies in percent, and the loss."""
        values = {"top-1": 100 * scores.top1, "top-5": 100 * scores.top5, "loss": scores.loss}
        return {f"{prefix}/{name}": value for name, value in values.items()}

    def describe_scores(self, scores: ClassificationScores, average_scores: ClassificationScores | None) -> str:
        """Return the top-1 accuracy in words."""
        average = f", {100 * average_scores.top1:.2f} % with averaged weights" if average_scores else ""
        return f"top-1 {100 * scores.top1:.2f} % on {scores.num_images:,} test images{average}"

    def compute_digest(self) -> str:
        """Return the digest of the backbone."""
        return compute_model_digest(self.classifier.backbone, self.world)

    def write_final_result(
        self,
        run_dir: RunDir,
        digest: str,
        scores: ClassificationScores,
        average_scores: ClassificationScores | None,
        best_checkpoint: BestCheckpoint,
    ) -> None:
        """Write the result of the last weights, with the accuracy of each class."""
        with unsharded(self.classifier):
            scores_by_granularities = {
                names: self.evaluator.evaluate(self.classifier, names) for names in self.config.data.test_with
            }
        if self.world.is_main:
            write_per_class_csv(run_dir, scores, self.classifier.spec.labels)
            metrics = build_finetune_metrics(scores, average_scores, scores_by_granularities, best_checkpoint.score)
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
    return train_in_run_dir(build_finetuning, config, output_dir, world, resume=resume, accept_changes=accept_changes)


def build_finetuning(config: FinetuneConfig, world: World, run_dir: RunDir | None = None) -> Finetuning:
    """Open the data and build the classifier, from its source or like that of an existing run."""
    data, seed = config.data, config.training.seed
    saved = read_saved_run(run_dir, world) if run_dir is not None else None
    spec, load_report = (saved.classifier, saved.metadata["load_report"]) if saved is not None else (None, "")
    if spec is not None:
        _check_matches_run(config, spec)
    if spec is None:
        backbone = config.load_backbone(seed, image_size=data.image_size)
    else:
        backbone = classifier_from_spec(spec).backbone
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
    trained_modules = (classifier.backbone.encoder.norm, classifier.backbone.fc_norm, classifier.head)
    freeze_blocks(classifier, classifier.backbone, config.train_blocks, trained_modules)
    scenes = _select_fraction(train.scenes, data.fraction, seed)
    plan = plan_training(config.training, num_samples=len(scenes), world_size=world.size)
    prepare_model(classifier, config.training, world)
    view = CentralView(crop=data.crop, overflow=data.overflow, **build_view_options(classifier.backbone, image_size))
    precision = choose_precision(config.training.precision, world.device.type)
    evaluator = ClassifierEvaluator(
        _cache_scenes(test.scenes, data.cache),
        view,
        world,
        BatchingConfig(batch_size=data.test_batch_size, num_workers=data.num_workers),
        torch.bfloat16 if precision == "bf16" else torch.float32,
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
    check_unchanged(settings)


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
