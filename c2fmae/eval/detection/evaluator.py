"""Tests of detectors: detections in all images of a set, compared with objects that are never resized."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.data import Scenes
from c2fmae.eval.detection.prediction_store import DetectionStore
from c2fmae.eval.detection.scores import DetectionScores
from c2fmae.eval.detection.testing_config import DetectionTestingConfig


@dataclass(frozen=True)
class DetectorEvaluator:
    """Evaluates detectors on scenes with objects.

    Images are predicted one by one and the main process compares them with the truth, so the scores are the same for
    any number of processes.
    """

    scenes: Scenes
    testing: DetectionTestingConfig
    world: World
    num_workers: int = 2
    show_progress: bool = False

    def evaluate(
        self, detector: nn.Module, weights: Mapping[str, Tensor] | None = None, *, store: DetectionStore | None = None
    ) -> DetectionScores:
        """Return the scores of a detector, optionally with other `weights`.

        With a `store`, detections are written to it, and images that have some are not predicted again.
        """
        raise NotImplementedError

    def score_predictions(self, store: DetectionStore) -> DetectionScores:
        """Return the scores of stored detections, without a model."""
        raise NotImplementedError
