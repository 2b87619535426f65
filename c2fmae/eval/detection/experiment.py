"""Trainings of detectors: open the data, build the detector, train, test and report."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from c2fmae.core.config_diff import flatten_settings
from c2fmae.core.detector_spec import DetectorSpec
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.experiment import RunOutcome
from c2fmae.core.model_preparation import prepare_model
from c2fmae.core.run_dir import RunDir
from c2fmae.core.seeding import derive_seed
from c2fmae.core.specs import BackboneSpec
from c2fmae.core.training import TrainingPlan, plan_training
from c2fmae.data import Scenes
from c2fmae.data.detection_batch import DetectionBatch, DetectionSample
from c2fmae.data.image_sizes import read_image_sizes
from c2fmae.data.sampler import SizePredictor
from c2fmae.eval.datasets import OpenedSet, open_object_set, select_fraction
from c2fmae.eval.detection.config import DetectConfig
from c2fmae.eval.detection.evaluator import DetectorEvaluator
from c2fmae.eval.detection.prediction import compute_divisor
from c2fmae.eval.detection.prediction_store import DetectionStore
from c2fmae.eval.detection.protocol import describe_test, describe_training
from c2fmae.eval.detection.report import write_detection_report
from c2fmae.eval.detection.result import DETECT_RESULTS, write_detection_result
from c2fmae.eval.detection.scores import DetectionScores
from c2fmae.eval.detection.task import DetectionTask
from c2fmae.eval.results import EvaluationResult
from c2fmae.eval.retestable_experiment import RetestableExperiment
from c2fmae.eval.training_experiment import check_unchanged, freeze_blocks, read_saved_run, train_in_run_dir
from c2fmae.eval.training_results import TrainingResults
from c2fmae.models.detectors import Detector, detector_from_backbone, detector_from_spec, load_detector
from c2fmae.models.norms import check_norms, synchronise_batch_norms

log = logging.getLogger(__name__)

_SPEC_FIELDS = ("pyramid", "windows", "relative", "anchors", "rpn", "rois", "box_head", "mask_head")
"""Settings of a config that are those of the detector's spec."""
_ROW_METRICS = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Detection(RetestableExperiment[DetectionScores]):
    """A training of a detector with opened data and an initialised detector."""

    config: DetectConfig
    scenes: Scenes
    """The training set."""
    evaluator: DetectorEvaluator
    plan: TrainingPlan
    detector: Detector
    protocol: str
    load_report: str
    test_identity: str
    world: World

    results: ClassVar[TrainingResults] = DETECT_RESULTS
    trained_model: ClassVar[str] = "detector"
    class_names: ClassVar[Literal["class_names", "object_class_names"]] = "object_class_names"
    row_key: ClassVar[str] = "test/box_AP"

    @classmethod
    def load_model(cls, run_dir: Path, *, step: int | None, use_ema: bool) -> Detector:
        """Return the detector of a run."""
        return load_detector(run_dir, step=step, use_ema=use_ema)

    @classmethod
    def open_set(cls, split: Literal["train", "test"], config: DetectConfig, backbone: BackboneSpec) -> OpenedSet:
        """Open a set of images with objects."""
        data = config.data
        return open_object_set(
            split,
            getattr(data, split),
            data.canvas or backbone.image_size,
            masks=config.mask_head is not None,
            limit=data.limit,
        )

    @classmethod
    def build_evaluator(
        cls, scenes: Scenes, config: DetectConfig, world: World, *, show_progress: bool = False
    ) -> DetectorEvaluator:
        """Return the evaluator of a test."""
        return DetectorEvaluator(scenes, config.testing, world, config.data.num_workers, show_progress)

    @classmethod
    def make_store(cls, predictions_dir: Path, identity: Mapping[str, Any]) -> DetectionStore:
        """Return the store of detections in a directory."""
        return DetectionStore(predictions_dir, identity)

    @classmethod
    def describe_test(cls, config: DetectConfig, model: Detector, test: OpenedSet) -> str:
        """Return a description of a test."""
        del model
        return describe_test(config, test)

    @classmethod
    def write_result(cls, *args: Any, **kwargs: Any) -> EvaluationResult:
        """Write the result of a test; see `write_detection_result`."""
        return write_detection_result(*args, **kwargs)

    @property
    def model(self) -> nn.Module:
        """The detector."""
        return self.detector

    @cached_property
    def task(self) -> DetectionTask:
        """The objects of images."""
        return DetectionTask(self.detector, self.config.training.seed)

    @property
    def collate(self) -> Callable[[list[Any]], DetectionBatch]:
        """The function that pads samples to the canvas, or to the largest of them."""
        return partial(DetectionBatch.stack, size=self.config.data.canvas, divisor=compute_divisor(self.detector))

    def build_view(self) -> Callable[..., DetectionSample]:
        """Return the transform that cuts samples."""
        return self.config.data.build_crop()

    def build_size_predictor(self) -> SizePredictor | None:
        """Return the predictor of the sizes of samples, for batches of similar ones."""
        data = self.config.data
        if not data.groups_by_size:
            return None
        sizes = read_image_sizes(self.scenes)
        return SizePredictor(data.build_crop().draw_size, sizes, self.config.training.seed)

    def get_score(self, scores: DetectionScores) -> float:
        """Return the AP of boxes or of masks."""
        kind = scores.mask if self.config.select_by == "mask" and scores.mask is not None else scores.box
        return kind.metrics["AP"] or 0.0

    def scores_to_row(self, prefix: str, scores: DetectionScores) -> dict[str, float]:
        """Return AP at all IoUs, at 0.5 and at 0.75 of boxes and of masks, in percent."""
        return {
            f"{prefix}/{kind}_{name}": 100 * (kind_scores.metrics[name] or 0.0)
            for kind, kind_scores in scores.kinds.items()
            for name in _ROW_METRICS
        }

    def describe_scores(self, scores: DetectionScores, average_scores: DetectionScores | None) -> str:
        """Return the AP in words."""
        average = f", {_describe_ap(average_scores)} with averaged weights" if average_scores else ""
        return f"{_describe_ap(scores)} on {scores.num_images:,} test images{average}"

    def write_report(self, run_dir: RunDir) -> None:
        """Write the page about the run."""
        update_detection_report(run_dir)


def _describe_ap(scores: DetectionScores) -> str:
    return ", ".join(f"{name} AP {100 * (kind.metrics['AP'] or 0.0):.2f} %" for name, kind in scores.kinds.items())


def update_detection_report(run_dir: RunDir) -> None:
    """Write the page of a run from the files in its directory."""
    config = DetectConfig.from_yaml(run_dir.config_path)
    write_detection_report(run_dir, DETECT_RESULTS.locate_dir(run_dir.path), config.describe_init())


def detect(
    config: DetectConfig, output_dir: Path, world: World, *, resume: bool = False, accept_changes: bool = False
) -> RunOutcome:
    """Train a detector in a run directory, or resume its run."""
    return train_in_run_dir(build_detection, config, output_dir, world, resume=resume, accept_changes=accept_changes)


def build_detection(config: DetectConfig, world: World, run_dir: RunDir | None = None) -> Detection:
    """Open the data and build the detector, from its source or like that of an existing run."""
    data, seed = config.data, config.training.seed
    saved = read_saved_run(run_dir, world) if run_dir is not None else None
    if saved is not None and saved.detector is not None:
        detector, load_report = detector_from_spec(saved.detector), saved.metadata["load_report"]
        train, test = Detection.open_sets(config, detector.spec.backbone)
        config = _without_missing_masks(config, train, world)
        _check_matches_run(config, saved.detector)
        Detection.check_classes("train", train, detector.spec.classes)
    else:
        backbone = config.load_backbone(seed)
        train, test = Detection.open_sets(config, backbone.spec)
        config = _without_missing_masks(config, train, world)
        _check_relative(config)
        detector = detector_from_backbone(
            backbone,
            train.scenes.info.object_classes,
            **{name: getattr(config, name) for name in _SPEC_FIELDS},
            drop_path=config.drop_path,
            image_size=data.canvas or backbone.spec.image_size,
            generator=torch.Generator().manual_seed(derive_seed(seed, "head")),
        )
        load_report = str(detector.load_report)
    config = config.model_copy(update={"backbone": detector.spec.backbone})
    trained: list[nn.Module | None] = [detector.pyramid, detector.rpn, detector.box_head, detector.mask_head]
    freeze_blocks(detector, detector.backbone, config.train_blocks, trained)
    scenes = select_fraction(train.scenes, data.fraction, seed)
    plan = plan_training(config.training, num_samples=len(scenes), world_size=world.size)
    _check_norms(config, plan, world)
    if world.size > 1 and world.device.type == "cuda" and not config.norm_is_local:
        synchronise_batch_norms(detector)
    prepare_model(detector, config.training, world)
    protocol = " ".join(
        [
            describe_training(config, plan, f"{train.name} ({len(scenes):,})"),
            describe_test(config, test),
        ]
    )
    return Detection(
        config,
        data.cache_scenes(scenes),
        Detection.build_evaluator(data.cache_scenes(test.scenes), config, world),
        plan,
        detector,
        protocol,
        load_report,
        test.identity,
        world,
    )


def _without_missing_masks(config: DetectConfig, train: OpenedSet, world: World) -> DetectConfig:
    """Return the config without a mask head if the training set has boxes only."""
    objects = train.scenes[0].objects
    if config.mask_head is None or objects is None or objects.masks is not None:
        return config
    if config.select_by == "mask":
        raise UserError(f"select_by: {train.name} has boxes without masks. Set it to box")
    if world.is_main:
        log.info("%s has boxes without masks, so the detector has no mask head", train.name)
    return config.model_copy(update={"mask_head": None})


def _check_relative(config: DetectConfig) -> None:
    """Raise a `UserError` if there is no size of training images for the tables of relative positions."""
    if config.relative != "none" and config.data.canvas is None:
        raise UserError(
            f"relative: the tables of {config.relative!r} are for the patches of training images of one size, but "
            "images without a canvas have different sizes. Set data.canvas, as [1024,1024], or relative=none"
        )


def _check_norms(config: DetectConfig, plan: TrainingPlan, world: World) -> None:
    """Raise a `UserError` if the statistics of a norm would depend on how a step's images are divided."""
    parts = {"pyramid": config.pyramid, "box_head": config.box_head, "mask_head": config.mask_head}
    check_norms(
        {f"{name}.norm": part.norm for name, part in parts.items() if part is not None},
        micro_batches=plan.num_micro_batches,
        processes=world.size,
        is_cuda=world.device.type == "cuda",
        is_local=config.norm_is_local,
    )


def _check_matches_run(config: DetectConfig, spec: DetectorSpec) -> None:
    """Raise a `UserError` for settings that differ from those of the run's detector."""
    saved, new = (flatten_settings(tree.model_dump(mode="json", include=set(_SPEC_FIELDS))) for tree in (spec, config))
    check_unchanged({key: (saved.get(key), new.get(key)) for key in saved | new})
    check_unchanged(
        {
            "drop_path": (spec.backbone.encoder.drop_path, config.drop_path),
            "data.canvas": (spec.backbone.image_size, config.data.canvas or spec.backbone.image_size),
        }
    )
