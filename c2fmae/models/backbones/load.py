"""Any source to a backbone."""

import logging
from collections.abc import Sequence
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.models.backbones.assemble import from_our_names, from_timm_names
from c2fmae.models.backbones.backbone import Backbone
from c2fmae.models.backbones.of_run import read_run
from c2fmae.models.backbones.of_timm import TIMM, read_timm

log = logging.getLogger(__name__)

SOURCES = (
    "a run's folder, a checkpoint, timm:NAME, timm:NAME@FILE, an exported folder, a Hugging Face ViT's or ViTMAE's "
    "folder, or an official file of MAE or MultiMAE"
)


def load_backbone(
    source: str | Path,
    *,
    allow_missing: Sequence[str] = (),
    step: int | None = None,
    average: bool = False,
) -> Backbone:
    """Return the ViT of a source, in evaluation mode, with a report of what became of every tensor.

    `allow_missing` names, by pattern, tensors that may be missing or have no place; `step` and `average` choose a
    run's checkpoint and its averaged weights. Nothing is ever unpickled that could run code.
    """
    backbone = _read(str(source), allow_missing, step, average)
    log.info("%s", backbone.report)
    return backbone


def _read(source: str, allow_missing: Sequence[str], step: int | None, average: bool) -> Backbone:
    if source.startswith(TIMM):
        return from_timm_names(read_timm(source), allow_missing)
    path = Path(source)
    if not path.exists():
        raise UserError(f"{source}: does not exist. Give {SOURCES}")
    if (path / "config.yaml").exists() or (path / "checkpoint.json").exists():
        return from_our_names(read_run(path, step=step, average=average), allow_missing)
    raise UserError(f"{source}: is none of these: {SOURCES}")
