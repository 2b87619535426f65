"""Loading of models that contain a backbone, such as segmenters and detectors, from runs and checkpoints."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from c2fmae.core.checkpoint import check_model_tensors
from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.core.run_info import RunInfo, is_run_or_checkpoint
from c2fmae.models.backbones.load_report import LoadReport
from c2fmae.models.backbones.run_reader import read_weights

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Any)
S = TypeVar("S")


def load_trained(
    source: str | Path,
    get_spec: Callable[[RunInfo], S | None],
    build: Callable[[S], M],
    *,
    name: str,
    command: str,
    step: int | None,
    use_ema: bool,
) -> M:
    """Return the model of a run or checkpoint, in evaluation mode.

    `get_spec` returns its spec, None for another kind of run. For other sources the error names the `command` of
    `c2fmae eval` that makes such a model, whose `name` is for messages.
    """
    path = Path(source)

    def other_source(problem: str) -> UserError:
        return UserError(f"{source}: {problem}. Make a {name}: c2fmae eval {command} {source} --data D")

    if not path.exists():
        raise UserError(f"{source}: does not exist. Check the path")
    if not is_run_or_checkpoint(path):
        raise other_source("is not a run of this package")
    checkpoint = find_checkpoint(path, step)
    info = RunInfo.from_checkpoint(checkpoint, path)
    spec = get_spec(info)
    if spec is None:
        raise other_source(f"is a {info.kind} run without a {name}")
    tensors, note = read_weights(checkpoint, path, use_ema=use_ema)
    with torch.device("meta"):  # of any size, until its weights are found to have the same
        model = build(spec)
    try:
        check_model_tensors(tensors, model.state_dict())
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    model = build(spec)
    model.load_state_dict(tensors)
    model.load_report = LoadReport(source=str(source), loaded=list(tensors), notes=[note])
    log.info("%s", model.load_report)
    return model
