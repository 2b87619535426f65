"""Detections of a set in files, from which an interrupted test resumes and scores are recomputed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DetectionStore:
    """A directory with the detections of each image."""

    predictions_dir: Path
    identity: Mapping[str, Any]
    """Everything that predictions depend on, as JSON: weights, data and settings."""
