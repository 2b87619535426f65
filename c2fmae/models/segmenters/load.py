"""Loading of segmenters from runs and checkpoints."""

import logging
from pathlib import Path

import torch

from c2fmae.core.checkpoint import check_model_tensors
from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.core.run_info import RunInfo, is_run_or_checkpoint
from c2fmae.models.backbones import LoadReport
from c2fmae.models.backbones.run_reader import read_weights
from c2fmae.models.segmenters.build import segmenter_from_spec
from c2fmae.models.segmenters.segmenter import Segmenter

log = logging.getLogger(__name__)


def load_segmenter(source: str | Path, *, step: int | None = None, use_ema: bool = False) -> Segmenter:
    """Return the segmenter of a run or checkpoint of `c2fmae eval segment`, in evaluation mode.

    `step` and `use_ema` select the checkpoint of a run and its averaged weights.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(f"{source}: does not exist. Check the path")
    if not is_run_or_checkpoint(path):
        raise _not_a_segmenter(source, "is not a run of this package")
    checkpoint = find_checkpoint(path, step)
    info = RunInfo.from_checkpoint(checkpoint, path)
    if info.segmenter is None:
        raise _not_a_segmenter(source, f"is a {info.kind} run without a segmenter")
    tensors, note = read_weights(checkpoint, path, use_ema=use_ema)
    with torch.device("meta"):  # of any size, until its weights are found to have the same
        segmenter = segmenter_from_spec(info.segmenter)
    try:
        check_model_tensors(tensors, segmenter.state_dict())
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    segmenter = segmenter_from_spec(info.segmenter)
    segmenter.load_state_dict(tensors)
    segmenter.load_report = LoadReport(source=str(source), loaded=list(tensors), notes=[note])
    log.info("%s", segmenter.load_report)
    return segmenter


def _not_a_segmenter(source: str | Path, problem: str) -> UserError:
    return UserError(f"{source}: {problem}. Make a segmenter: c2fmae eval segment {source} --data D")
