"""Trainings of segmenters: open the data, build the segmenter, train, test and report."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.experiment import RunOutcome, is_new_run, locked_run_dir, run_experiment
from c2fmae.core.run_dir import RunDir
from c2fmae.core.seeding import derive_seed
from c2fmae.core.specs import SegmenterSpec, spec_identity
from c2fmae.core.training import TrainingPlan, plan_training
from c2fmae.data import Scenes
from c2fmae.data.segmentation_batch import SegmentationBatch
from c2fmae.eval.best_checkpoint import BestCheckpoint
from c2fmae.eval.cache import compute_module_digest
from c2fmae.eval.datasets import OpenedSet, check_same_names, open_set, select_fraction
from c2fmae.eval.results import EvaluationResult
from c2fmae.eval.segmentation.config import SegmentConfig
from c2fmae.eval.segmentation.evaluator import SegmenterEvaluator
from c2fmae.eval.segmentation.prediction_store import PredictionStore
from c2fmae.eval.segmentation.protocol import describe_test, describe_training
from c2fmae.eval.segmentation.report import write_segmentation_report
from c2fmae.eval.segmentation.result import (
    PREDICTIONS_DIR,
    find_segmentation_result,
    identify_predictions,
    identify_result,
    locate_result_dir,
    write_segmentation_result,
)
from c2fmae.eval.segmentation.scores import SegmentationScores
from c2fmae.eval.segmentation.task import LabelledCrop, SegmentationTask
from c2fmae.eval.training_experiment import (
    ScoredExperiment,
    check_unchanged,
    freeze_blocks,
    read_saved_run,
)
from c2fmae.eval.training_retest import check_finished, check_same_classes, describe_weights, find_or_test
from c2fmae.models.norms import check_norm, synchronise_batch_norms
from c2fmae.models.segmenters import Segmenter, load_segmenter, segmenter_from_backbone, segmenter_from_spec


@dataclass(frozen=True)
class Segmentation(ScoredExperiment[SegmentationScores]):
    """A training of a segmenter with opened data and an initialised segmenter."""

    config: SegmentConfig
    scenes: Scenes
    """The training set."""
    evaluator: SegmenterEvaluator
    plan: TrainingPlan
    segmenter: Segmenter
    protocol: str
    load_report: str
    """The report on the initial weights."""
    test_identity: str
    """The digest of the test set."""
    world: World

    row_key: ClassVar[str] = "test/mIoU"

    @property
    def model(self) -> nn.Module:
        """The segmenter."""
        return self.segmenter

    @cached_property
    def task(self) -> SegmentationTask:
        """The classes of labelled pixels."""
        return SegmentationTask(self.segmenter, self.config.auxiliary_weight)

    @property
    def collate(self) -> Callable[[list[Any]], SegmentationBatch]:
        """The function that pads samples to the size of a crop."""
        return partial(SegmentationBatch.stack, size=self.segmenter.spec.backbone.image_size)

    def build_view(self) -> LabelledCrop:
        """Return the transform that cuts samples."""
        crop = self.config.data.build_crop(self.segmenter.spec.backbone.image_size)
        return LabelledCrop(crop, self.segmenter.num_classes)

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of checkpoints."""
        spec = self.segmenter.spec
        return {
            "kind": "segmentation",
            "backbone": spec.backbone.model_dump(mode="json"),
            "segmenter": spec.model_dump(mode="json", exclude={"backbone"}),
            "config": self.config.model_dump(mode="json", exclude={"backbone"}),
            "samples": len(self.scenes),
            "load_report": self.load_report,
        }

    def compute_scores(
        self, run_dir: RunDir, average: Mapping[str, Tensor] | None, *, digest: str | None
    ) -> SegmentationScores:
        """Return the scores on the test set. Predictions of the last weights are stored: a killed test resumes."""
        store = None
        if digest is not None:
            identity = identify_predictions(digest, self.test_identity, self.config.testing)
            store = PredictionStore(locate_result_dir(run_dir.path) / PREDICTIONS_DIR, identity)
        return self.evaluator.evaluate(self.segmenter, average, store=store)

    def get_score(self, scores: SegmentationScores) -> float:
        """Return the mIoU."""
        return scores.mean_iou

    def scores_to_row(self, prefix: str, scores: SegmentationScores) -> dict[str, float]:
        """Return mIoU, mean and pixel accuracy in percent."""
        values = {"mIoU": scores.mean_iou, "mAcc": scores.mean_accuracy, "aAcc": scores.pixel_accuracy}
        return {f"{prefix}/{name}": 100 * value for name, value in values.items()}

    def describe_scores(self, scores: SegmentationScores, average_scores: SegmentationScores | None) -> str:
        """Return the mIoU in words."""
        average = f", {100 * average_scores.mean_iou:.2f} % with averaged weights" if average_scores else ""
        return f"mIoU {100 * scores.mean_iou:.2f} % on {scores.num_images:,} test images{average}"

    def write_final_result(
        self,
        run_dir: RunDir,
        digest: str,
        scores: SegmentationScores,
        average_scores: SegmentationScores | None,
        best_checkpoint: BestCheckpoint,
    ) -> None:
        """Write the result of the last weights."""
        if self.world.is_main:
            write_segmentation_result(
                locate_result_dir(run_dir.path),
                self.config,
                scores,
                self.segmenter.spec.classes,
                self.protocol,
                title=self.config.title,
                identity=identify_result(digest, self.test_identity, self.config.testing),
                scenes=self.evaluator.scenes,
                load_report=self.load_report,
                world_size=self.world.size,
                average_scores=average_scores,
                best=(best_checkpoint.step, best_checkpoint.score),
            )

    def write_report(self, run_dir: RunDir) -> None:
        """Write the page about the run."""
        update_segmentation_report(run_dir)


def update_segmentation_report(run_dir: RunDir) -> None:
    """Write the page of a run from the files in its directory."""
    config = SegmentConfig.from_yaml(run_dir.config_path)
    write_segmentation_report(run_dir, locate_result_dir(run_dir.path), config.describe_init())


def segment(
    config: SegmentConfig, output_dir: Path, world: World, *, resume: bool = False, accept_changes: bool = False
) -> RunOutcome:
    """Train a segmenter in a run directory, or resume its run."""
    with locked_run_dir(output_dir, world) as run_dir:
        experiment = build_segmentation(config, world, run_dir if not is_new_run(run_dir, world) else None)
        return run_experiment(experiment, run_dir, resume=resume, accept_changes=accept_changes)


def retest(
    config: SegmentConfig,
    run_dir: Path,
    world: World,
    *,
    step: int | None = None,
    use_ema: bool = False,
    recompute: bool = False,
) -> EvaluationResult:
    """Test the segmenter of a finished run with the settings `testing` of a config, or return the stored result."""
    check_finished(run_dir, "segment")
    segmenter = load_segmenter(run_dir, step=step, use_ema=use_ema).to(world.device)
    title, spec = describe_weights(run_dir, step, use_ema=use_ema), segmenter.spec
    test_set = open_segmentation_set("test", config, spec.backbone.image_size)
    check_same_classes("test", test_set.name, test_set.scenes.info.class_names, spec.classes)
    digest = compute_module_digest(segmenter, spec_identity(spec))
    identity = identify_result(digest, test_set.identity, config.testing)

    def test() -> EvaluationResult | None:
        result_dir = locate_result_dir(run_dir, identity)
        predictions = identify_predictions(digest, test_set.identity, config.testing)
        store = PredictionStore(result_dir / PREDICTIONS_DIR, predictions)
        if recompute and world.is_main:
            shutil.rmtree(store.predictions_dir, ignore_errors=True)
        evaluator = SegmenterEvaluator(test_set.scenes, config.testing, world, config.data.workers, show_progress=True)
        scores = evaluator.evaluate(segmenter, store=store)
        if not world.is_main:
            return None
        return write_segmentation_result(
            result_dir,
            config,
            scores,
            spec.classes,
            f"The segmenter of {title}. {describe_test(config, spec, test_set)}",
            title=title,
            identity=identity,
            scenes=test_set.scenes,
            load_report=str(segmenter.load_report),
            world_size=world.size,
        )

    return find_or_test(world, lambda: None if recompute else find_segmentation_result(run_dir, identity), test)


def build_segmentation(config: SegmentConfig, world: World, run_dir: RunDir | None = None) -> Segmentation:
    """Open the data and build the segmenter, from its source or like that of an existing run."""
    data, seed = config.data, config.training.seed
    saved = read_saved_run(run_dir, world) if run_dir is not None else None
    if saved is not None and saved.segmenter is not None:
        segmenter, load_report = segmenter_from_spec(saved.segmenter), saved.metadata["load_report"]
        _check_matches_run(config, saved.segmenter)
        train, test = _open_sets(config, segmenter.spec.backbone.image_size)
        check_same_classes("train", train.name, train.scenes.info.class_names, segmenter.spec.classes)
    else:
        backbone = config.load_backbone(seed)
        image_size = data.image_size or backbone.spec.image_size
        train, test = _open_sets(config, image_size)
        segmenter = segmenter_from_backbone(
            backbone,
            train.scenes.info.classes,
            head=config.head.to_spec(),
            depths=config.resolve_depths(backbone.depth),
            normed=config.normed,
            norm=config.norm,
            relative=config.relative,
            drop_path=config.drop_path,
            image_size=image_size,
            generator=torch.Generator().manual_seed(derive_seed(seed, "head")),
        )
        load_report = str(segmenter.load_report)
    config = config.model_copy(update={"backbone": segmenter.spec.backbone})
    _freeze_blocks(segmenter, config.train_blocks)
    scenes = select_fraction(train.scenes, data.fraction, seed)
    plan = plan_training(config.training, num_samples=len(scenes), world_size=world.size)
    check_norm(
        config.norm,
        micro_batch_size=plan.batch_size_per_rank // plan.num_micro_batches,
        micro_batches=plan.num_micro_batches,
        processes=world.size,
        is_cuda=world.device.type == "cuda",
        is_local=config.norm_is_local,
    )
    if world.size > 1 and world.device.type == "cuda" and not config.norm_is_local:
        synchronise_batch_norms(segmenter)
    if config.training.sharded:
        world.shard_model(segmenter)
    segmenter.to(world.device)
    if config.training.compile:
        segmenter.compile()
    protocol = " ".join(
        [
            describe_training(config, plan, segmenter.spec, f"{train.name} ({len(scenes):,})"),
            describe_test(config, segmenter.spec, test),
        ]
    )
    return Segmentation(
        config,
        data.cache_scenes(scenes),
        SegmenterEvaluator(data.cache_scenes(test.scenes), config.testing, world, num_workers=data.workers),
        plan,
        segmenter,
        protocol,
        load_report,
        test.identity,
        world,
    )


def _open_sets(config: SegmentConfig, image_size: tuple[int, int]) -> tuple[OpenedSet, OpenedSet]:
    """Return the training and the test set, whose classes and maps are checked."""
    train, test = (open_segmentation_set(split, config, image_size) for split in ("train", "test"))
    check_same_names((train, test), "class_names")
    return train, test


def open_segmentation_set(
    split: Literal["train", "test"], config: SegmentConfig, image_size: tuple[int, int]
) -> OpenedSet:
    """Open a set of images with semantic maps. Raise a `UserError` if it cannot be used with the config."""
    data = config.data
    opened = open_set(split, getattr(data, split), image_size, ("semantic", "rgb"), limit=data.limit)
    info = opened.scenes.info
    if not info.classes:
        raise UserError(
            f"{split}: {opened.name} names no classes. List them in its dataset.json; `c2fmae data check` "
            "prints one to start from"
        )
    if len(info.classes) == 1:
        raise UserError(
            f"{split}: {opened.name} has one class, {info.classes[0].name!r}, so that every prediction is right. Add a "
            "class for the other pixels to its maps and its dataset.json"
        )
    if info.label_stride > 1 and not data.allow_label_stride:
        raise UserError(
            f"{split}: {opened.name} has labels at every {info.label_stride} pixels only (label_stride in its "
            "dataset.json), but the published results are for labels at every pixel. Use maps at full size, or accept "
            "this with --recipe small or data.allow_label_stride=true"
        )
    return opened


def _freeze_blocks(segmenter: Segmenter, train_blocks: int | None) -> None:
    """Train only the last blocks, with the norm after them if there are any, and all that follows the backbone."""
    trained: list[nn.Module | None] = [segmenter.pyramid, segmenter.head, segmenter.auxiliary]
    freeze_blocks(
        segmenter,
        segmenter.backbone,
        train_blocks,
        [*trained, segmenter.backbone.encoder.norm] if train_blocks else trained,
    )


def _check_matches_run(config: SegmentConfig, spec: SegmenterSpec) -> None:
    """Raise a `UserError` for settings that differ from those of the run's segmenter."""
    check_unchanged(
        {
            "head": (spec.head, config.head.to_spec()),
            "depths": (spec.depths, config.depths or spec.depths),
            "normed": (spec.normed, config.normed),
            "norm": (spec.norm, config.norm),
            "relative": (spec.relative, config.relative),
            "drop_path": (spec.backbone.encoder.drop_path, config.drop_path),
            "data.image_size": (spec.backbone.image_size, config.data.image_size or spec.backbone.image_size),
        }
    )
