"""Loading of detectors from runs and checkpoints."""

from pathlib import Path

from c2fmae.models.backbones.trained_model import load_trained
from c2fmae.models.detectors.build import detector_from_spec
from c2fmae.models.detectors.detector import Detector


def load_detector(source: str | Path, *, step: int | None = None, use_ema: bool = False) -> Detector:
    """Return the detector of a run or checkpoint of `c2fmae eval detect`, in evaluation mode.

    `step` and `use_ema` select the checkpoint of a run and its averaged weights.
    """
    return load_trained(
        source,
        lambda info: info.detector,
        detector_from_spec,
        name="detector",
        command="detect",
        step=step,
        use_ema=use_ema,
    )
