"""Results of trained segmenters and detectors: what they depend on, and where they are below a run's directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2fmae.core.config import Config
from c2fmae.core.environment import collect_environment
from c2fmae.core.errors import UserError
from c2fmae.core.json_file import read_json
from c2fmae.eval.cache import compute_json_digest
from c2fmae.eval.metrics import Metric
from c2fmae.eval.prediction_dir import has_identity
from c2fmae.eval.results import (
    MAX_RESULT_BYTES,
    RESULT_FORMAT,
    RESULTS_FILE,
    EvaluationResult,
    load_result,
    save_result,
)
from c2fmae.report import Section

PREDICTIONS_DIR = "predictions"
_OUTDATED_FILE = "outdated"  # of a result that is being recomputed


@dataclass(frozen=True)
class TrainingResults:
    """The results of an evaluation: those of the tests at the end of trainings, and of later tests."""

    evaluation: str
    protocol_version: int
    """Increase it when the same settings give other numbers, so that stored results are recomputed."""
    ignored_settings: frozenset[str] = frozenset()
    """Settings of a test on which its result does not depend."""
    score_settings: frozenset[str] = frozenset()
    """Settings of a test on which its result depends, but not its predictions."""

    def locate_dir(self, run_dir: Path, identity: Mapping[str, Any] | None = None) -> Path:
        """Return the directory of the result of a run's own test, or of another test of its weights."""
        suffix = f"-{compute_json_digest(identity, length=6)}" if identity is not None else ""
        return run_dir / "evaluations" / f"{self.evaluation}{suffix}"

    def identify_predictions(self, weights: str, test_identity: str, testing: Config) -> dict[str, Any]:
        """Return everything that predictions depend on, from the digests of the weights and of the test set."""
        settings = testing.model_dump(mode="json", exclude={*self.ignored_settings, *self.score_settings})
        return {
            "protocol_version": self.protocol_version,
            "testing": settings,
            "weights": weights,
            "data": test_identity,
        }

    def identify_result(self, weights: str, test_identity: str, testing: Config) -> dict[str, Any]:
        """Return everything that a result depends on."""
        return {
            "format": RESULT_FORMAT,
            "evaluation": self.evaluation,
            "protocol_version": self.protocol_version,
            "testing": testing.model_dump(mode="json", exclude={*self.ignored_settings}),
            "weights": weights,
            "inputs": {"test": test_identity},
        }

    def find(self, run_dir: Path, identity: Mapping[str, Any]) -> EvaluationResult | None:
        """Return the stored result of a run with this identity; None if there is none."""
        for path in sorted(run_dir.glob(f"evaluations/{self.evaluation}*/{RESULTS_FILE}")):
            try:
                document = read_json(path, max_bytes=MAX_RESULT_BYTES)
                if all(document.get(key) == value for key, value in identity.items()):
                    return load_result(path.parent)
            except UserError:  # an invalid file is not this result
                continue
        return None

    def read(self, run_dir: Path) -> EvaluationResult:
        """Return the stored result of a run's own test."""
        return load_result(self.locate_dir(run_dir))

    def find_predictions(self, run_dir: Path, identity: Mapping[str, Any]) -> Path | None:
        """Return the directory of stored predictions with this identity, of any result; None if there is none."""
        folders = sorted(run_dir.glob(f"evaluations/{self.evaluation}*/{PREDICTIONS_DIR}"))
        return next((folder for folder in folders if has_identity(folder, identity)), None)


@dataclass(frozen=True)
class TestRecord:
    """What is known about a test, besides its scores."""

    __test__ = False  # not a test of pytest

    result_dir: Path
    title: str
    protocol: str
    identity: Mapping[str, Any]
    load_report: str
    world_size: int
    previous: EvaluationResult | None = None
    """A result of the same identity, whose other metrics stay: those of averaged and of the best weights."""

    def save(
        self, metrics: tuple[Metric, ...], config: Config, details: Mapping[str, Any], sections: list[Section]
    ) -> EvaluationResult:
        """Write the result, with further `details`, and its page with `sections`."""
        if self.previous is not None:
            new = {metric.identity for metric in metrics}
            metrics += tuple(metric for metric in self.previous.metrics if metric.identity not in new)
        evaluation = self.identity["evaluation"]
        result = EvaluationResult(evaluation, self.title, self.protocol, metrics, self.result_dir, is_new=True)
        metadata = {
            **self.identity,
            "config": config.model_dump(mode="json"),
            **details,
            "load_report": self.load_report,
            "environment": collect_environment(world_size=self.world_size),
        }
        save_result(result, metadata, sections)
        (self.result_dir / _OUTDATED_FILE).unlink(missing_ok=True)
        return result


def mark_outdated(result_dir: Path) -> None:
    """Record that a result is being recomputed: until then it is not reused, even if the test is stopped."""
    result_dir.mkdir(parents=True, exist_ok=True)
    (result_dir / _OUTDATED_FILE).touch()


def is_outdated(result_dir: Path) -> bool:
    """Return whether a result was to be recomputed, but is not yet."""
    return (result_dir / _OUTDATED_FILE).exists()
