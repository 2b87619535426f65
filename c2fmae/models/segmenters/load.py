"""Loading of segmenters from runs and checkpoints."""

from pathlib import Path

from c2fmae.models.backbones.trained_model import load_trained
from c2fmae.models.segmenters.build import segmenter_from_spec
from c2fmae.models.segmenters.segmenter import Segmenter


def load_segmenter(source: str | Path, *, step: int | None = None, use_ema: bool = False) -> Segmenter:
    """Return the segmenter of a run or checkpoint of `c2fmae eval segment`, in evaluation mode.

    `step` and `use_ema` select the checkpoint of a run and its averaged weights.
    """
    return load_trained(
        source,
        lambda info: info.segmenter,
        segmenter_from_spec,
        name="segmenter",
        command="segment",
        step=step,
        use_ema=use_ema,
    )
