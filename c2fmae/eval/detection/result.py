"""Results of tests of detectors: metrics, identity and files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.json_file import read_json
from c2fmae.core.labels import ClassInfo
from c2fmae.data import Scenes
from c2fmae.eval.cache import compute_json_digest
from c2fmae.eval.detection.scores import DetectionScores
from c2fmae.eval.detection.testing_config import DetectionTestingConfig
from c2fmae.eval.results import (
    MAX_RESULT_BYTES,
    RESULT_FORMAT,
    RESULTS_FILE,
    EvaluationResult,
    load_result,
)

DETECT_EVALUATION = "detect"
PROTOCOL_VERSION = 1
"""Increase it when the same settings give other numbers, so that stored results are recomputed."""
PREDICTIONS_DIR = "predictions"


def locate_result_dir(run_dir: Path, identity: Mapping[str, Any] | None = None) -> Path:
    """Return the directory of the result of a run's own test, or of another test of its weights."""
    suffix = f"-{compute_json_digest(identity, length=6)}" if identity is not None else ""
    return run_dir / "evaluations" / f"{DETECT_EVALUATION}{suffix}"


def identify_predictions(weights: str, test_identity: str, testing: DetectionTestingConfig) -> dict[str, Any]:
    """Return everything that detections depend on, from the digests of the weights and of the test set."""
    settings = testing.model_dump(mode="json", exclude={"engine", "confusion_score", "intervals"})
    return {"protocol_version": PROTOCOL_VERSION, "testing": settings, "weights": weights, "data": test_identity}


def identify_result(weights: str, test_identity: str, testing: DetectionTestingConfig) -> dict[str, Any]:
    """Return everything that a result depends on: not the engine, since all engines give the same numbers."""
    return {
        "format": RESULT_FORMAT,
        "evaluation": DETECT_EVALUATION,
        "protocol_version": PROTOCOL_VERSION,
        "testing": testing.model_dump(mode="json", exclude={"engine"}),
        "weights": weights,
        "inputs": {"test": test_identity},
    }


def find_detection_result(run_dir: Path, identity: Mapping[str, Any]) -> EvaluationResult | None:
    """Return the stored result of a run with this identity; None if there is none."""
    for path in sorted(run_dir.glob(f"evaluations/{DETECT_EVALUATION}*/{RESULTS_FILE}")):
        try:
            document = read_json(path, max_bytes=MAX_RESULT_BYTES)
            if all(document.get(key) == value for key, value in identity.items()):
                return load_result(path.parent)
        except UserError:  # an invalid file is not this result
            continue
    return None


def read_detection_result(run_dir: Path) -> EvaluationResult:
    """Return the stored result of a run's own test."""
    return load_result(locate_result_dir(run_dir))


def write_detection_result(
    result_dir: Path,
    config: Config,
    scores: DetectionScores,
    classes: Sequence[ClassInfo],
    protocol: str,
    *,
    title: str,
    identity: Mapping[str, Any],
    scenes: Scenes,
    load_report: str,
    world_size: int,
    average_scores: DetectionScores | None = None,
    best: tuple[int | None, float] = (None, 0.0),
) -> EvaluationResult:
    """Write the result of a test, its tables and examples of its detections, and its page.

    `scenes` is the test set, whose detections are in the directory already; `best` is the step with the highest AP
    during training, and this AP.
    """
    raise NotImplementedError
