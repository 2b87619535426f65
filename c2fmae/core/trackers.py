"""Trackers that receive metrics and figures of a run: TensorBoard and W&B, each an optional dependency.

A run needs only its own files, so nothing is read back from a tracker, and a tracker that fails does not stop the run.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, runtime_checkable
from uuid import uuid4

from c2fmae.core.errors import UserError

TrackerName = Literal["tensorboard", "wandb"]

_EXTRAS: dict[TrackerName, str] = {"tensorboard": "tb", "wandb": "wandb"}


@runtime_checkable
class Tracker(Protocol):
    """A receiver of metrics and figures."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Log a row of metrics; values that are not finite numbers are left out."""

    def log_figure(self, step: int, name: str, path: Path) -> None:
        """Log an image file."""

    def close(self) -> None:
        """Write buffered values and close."""


def open_trackers(
    names: Sequence[TrackerName], run_dir: Path, *, name: str, config: Mapping[str, Any], start_step: int
) -> list[Tracker]:
    """Open trackers for a run that has done `start_step` steps. Logged values of later steps will be replaced."""
    opened: list[Tracker] = []
    for tracker in names:
        try:
            opened.append(_FailSafeTracker(tracker, _OPENERS[tracker](run_dir, name, config, start_step)))
        except (UserError, ImportError):  # not installed, or incomplete: the user can fix it
            raise
        except Exception as error:
            text = "%s cannot be opened, so nothing of this run is logged to it: %s: %s"
            logging.getLogger(__name__).warning(text, tracker, type(error).__name__, error)
    return opened


def select_scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a row.

    >>> select_scalars({"step": 3, "loss": 2.1, "loss/rgb": None, "skipped": "not finite"})
    {'loss': 2.1}
    """
    return {
        key: float(value)
        for key, value in values.items()
        if key != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


class _FailSafeTracker:
    """A tracker that is disabled with a warning after its first failure."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.tracker = name, tracker
        self.has_failed = False

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._call(self.tracker.log, step, values)

    def log_figure(self, step: int, name: str, path: Path) -> None:
        self._call(self.tracker.log_figure, step, name, path)

    def close(self) -> None:
        self._call(self.tracker.close)

    def _call(self, method: Callable[..., None], *args: Any) -> None:
        if self.has_failed:
            return
        try:
            method(*args)
        except Exception as error:
            self.has_failed = True
            logging.getLogger(__name__).warning(
                "%s failed, so nothing more of this run is logged to it: %s: %s", self.name, type(error).__name__, error
            )


class _TensorBoard:
    """TensorBoard event files in `tensorboard/` of the run directory."""

    def __init__(self, run_dir: Path, name: str, config: Mapping[str, Any], start_step: int) -> None:
        import_tracker("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(run_dir / "tensorboard", purge_step=start_step + 1, flush_secs=30)
        if start_step == 0:
            import yaml

            text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
            self.writer.add_text(name, f"```yaml\n{text}```", start_step)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        for key, value in select_scalars(values).items():
            self.writer.add_scalar(key, value, step)

    def log_figure(self, step: int, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class _WandB:
    """A W&B run, which a resumed run continues. It is offline unless the user is logged in or WANDB_MODE is set.

    Steps are a metric of their own, since the step of W&B cannot go back as that of a resumed run does.
    """

    def __init__(self, run_dir: Path, name: str, config: Mapping[str, Any]) -> None:
        wandb = self.wandb = import_tracker("wandb")
        id_file = run_dir / "wandb-id"
        if not id_file.exists() or not id_file.read_text(encoding="utf-8"):
            id_file.write_text(uuid4().hex[:12], encoding="utf-8")
        mode = None
        if "WANDB_MODE" not in os.environ:
            mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
        self.run = wandb.init(
            project="c2fmae",
            name=name,
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(run_dir),
            config=dict(config),
            mode=mode,
            settings=wandb.Settings(console="off"),  # the terminal shows a progress bar
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self.run.log({"step": step, **select_scalars(values)})

    def log_figure(self, step: int, name: str, path: Path) -> None:
        self.run.log({"step": step, name: self.wandb.Image(str(path))})

    def close(self) -> None:
        self.run.finish()


_OPENERS: dict[TrackerName, Callable[[Path, str, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": lambda folder, name, config, _: _WandB(folder, name, config),
}


def import_tracker(name: TrackerName) -> ModuleType:
    """Return the package of a tracker; one that is not installed is a `UserError`."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        extra = _EXTRAS[name]
        raise UserError(
            f"watching.trackers: {name!r} is not installed. Install it with: pip install 'c2fmae[{extra}]'"
        ) from error
