"""Trainings of segmenters: open the data, build the segmenter, train, test and report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.experiment import RunOutcome
from c2fmae.core.model_preparation import prepare_model
from c2fmae.core.run_dir import RunDir
from c2fmae.core.seeding import derive_seed
from c2fmae.core.specs import BackboneSpec, SegmenterSpec
from c2fmae.core.training import TrainingPlan, plan_training
from c2fmae.data import Scenes
from c2fmae.data.segmentation_batch import SegmentationBatch
from c2fmae.eval.datasets import OpenedSet, open_set, select_fraction
from c2fmae.eval.results import EvaluationResult
from c2fmae.eval.retestable_experiment import RetestableExperiment
from c2fmae.eval.segmentation.config import SegmentConfig
from c2fmae.eval.segmentation.evaluator import SegmenterEvaluator
from c2fmae.eval.segmentation.prediction_store import PredictionStore
from c2fmae.eval.segmentation.protocol import describe_test, describe_training
from c2fmae.eval.segmentation.report import write_segmentation_report
from c2fmae.eval.segmentation.result import SEGMENT_RESULTS, write_segmentation_result
from c2fmae.eval.segmentation.scores import SegmentationScores
from c2fmae.eval.segmentation.task import LabelledCrop, SegmentationTask
from c2fmae.eval.training_experiment import check_unchanged, freeze_blocks, read_saved_run, train_in_run_dir
from c2fmae.eval.training_results import TrainingResults
from c2fmae.models.norms import check_norm, synchronise_batch_norms
from c2fmae.models.segmenters import Segmenter, load_segmenter, segmenter_from_backbone, segmenter_from_spec


@dataclass(frozen=True)
class Segmentation(RetestableExperiment[SegmentationScores]):
    """A training of a segmenter with opened data and an initialised segmenter."""

    config: SegmentConfig
    scenes: Scenes
    """The training set."""
    evaluator: SegmenterEvaluator
    plan: TrainingPlan
    segmenter: Segmenter
    protocol: str
    load_report: str
    test_identity: str
    world: World

    results: ClassVar[TrainingResults] = SEGMENT_RESULTS
    trained_model: ClassVar[str] = "segmenter"
    class_names: ClassVar[Literal["class_names", "object_class_names"]] = "class_names"
    row_key: ClassVar[str] = "test/mIoU"

    @classmethod
    def load_model(cls, run_dir: Path, *, step: int | None, use_ema: bool) -> Segmenter:
        """Return the segmenter of a run."""
        return load_segmenter(run_dir, step=step, use_ema=use_ema)

    @classmethod
    def open_set(cls, split: Literal["train", "test"], config: SegmentConfig, backbone: BackboneSpec) -> OpenedSet:
        """Open a set of images with semantic maps."""
        return open_segmentation_set(split, config, backbone.image_size)

    @classmethod
    def build_evaluator(
        cls, scenes: Scenes, config: SegmentConfig, world: World, *, show_progress: bool = False
    ) -> SegmenterEvaluator:
        """Return the evaluator of a test."""
        return SegmenterEvaluator(scenes, config.testing, world, config.data.num_workers, show_progress)

    @classmethod
    def make_store(cls, predictions_dir: Path, identity: Mapping[str, Any]) -> PredictionStore:
        """Return the store of class ids in a directory."""
        return PredictionStore(predictions_dir, identity)

    @classmethod
    def describe_test(cls, config: SegmentConfig, model: Segmenter, test: OpenedSet) -> str:
        """Return a description of a test."""
        return describe_test(config, model.spec, test)

    @classmethod
    def write_result(cls, *args: Any, **kwargs: Any) -> EvaluationResult:
        """Write the result of a test; see `write_segmentation_result`."""
        return write_segmentation_result(*args, **kwargs)

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

    def write_report(self, run_dir: RunDir) -> None:
        """Write the page about the run."""
        update_segmentation_report(run_dir)


def update_segmentation_report(run_dir: RunDir) -> None:
    """Write the page of a run from the files in its directory."""
    config = SegmentConfig.from_yaml(run_dir.config_path)
    write_segmentation_report(run_dir, SEGMENT_RESULTS.locate_dir(run_dir.path), config.describe_init())


def segment(
    config: SegmentConfig, output_dir: Path, world: World, *, resume: bool = False, accept_changes: bool = False
) -> RunOutcome:
    """Train a segmenter in a run directory, or resume its run."""
    return train_in_run_dir(build_segmentation, config, output_dir, world, resume=resume, accept_changes=accept_changes)


def build_segmentation(config: SegmentConfig, world: World, run_dir: RunDir | None = None) -> Segmentation:
    """Open the data and build the segmenter, from its source or like that of an existing run."""
    data, seed = config.data, config.training.seed
    saved = read_saved_run(run_dir, world) if run_dir is not None else None
    if saved is not None and saved.segmenter is not None:
        segmenter, load_report = segmenter_from_spec(saved.segmenter), saved.metadata["load_report"]
        _check_matches_run(config, saved.segmenter)
        train, test = Segmentation.open_sets(config, segmenter.spec.backbone)
        Segmentation.check_classes("train", train, segmenter.spec.classes)
    else:
        backbone = config.load_backbone(seed)
        image_size = data.image_size or backbone.spec.image_size
        train, test = Segmentation.open_sets(config, backbone.spec.model_copy(update={"image_size": image_size}))
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
    prepare_model(segmenter, config.training, world)
    protocol = " ".join(
        [
            describe_training(config, plan, segmenter.spec, f"{train.name} ({len(scenes):,})"),
            describe_test(config, segmenter.spec, test),
        ]
    )
    return Segmentation(
        config,
        data.cache_scenes(scenes),
        Segmentation.build_evaluator(data.cache_scenes(test.scenes), config, world),
        plan,
        segmenter,
        protocol,
        load_report,
        test.identity,
        world,
    )


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
