import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.core.trackers import Tracker, TrackerName, open_trackers, select_scalars

CONFIG = {"training": {"lr": 0.001, "betas": (0.9, 0.95)}}
ROW = {"step": 3, "loss": 2.5, "loss/rgb": None, "grad_norm": float("nan"), "skipped": "not finite", "alpha": 1}


def open_one(name: TrackerName, folder: Path, *, since_step: int = 0) -> Tracker:
    [tracker] = open_trackers([name], folder, name="tiny", config=CONFIG, start_step=since_step)
    return tracker


def red_image(folder: Path) -> Path:
    Image.new("RGB", (8, 4), (255, 0, 0)).save(folder / "red.png")
    return folder / "red.png"


def test_only_finite_numbers_are_scalars() -> None:
    assert select_scalars(ROW) == {"loss": 2.5, "alpha": 1.0}


needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is an extra")


def events(folder: Path) -> Any:
    module = import_module("tensorboard.backend.event_processing.event_accumulator")
    accumulator = module.EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(name)]


@needs_tensorboard
def test_tensorboard_receives_metrics_figures_and_the_config(tmp_path: Path) -> None:
    tracker = open_one("tensorboard", tmp_path)
    tracker.log(3, ROW)
    tracker.log(3, {"step": 3, "held_out/loss": 0.5})
    tracker.log_figure(3, "reconstruction", red_image(tmp_path))
    tracker.close()
    assert curve(tmp_path, "loss") == [(3, 2.5)]
    assert curve(tmp_path, "alpha") == [(3, 1.0)]
    assert curve(tmp_path, "held_out/loss") == [(3, 0.5)]
    found = events(tmp_path)
    assert sorted(found.Tags()["scalars"]) == ["alpha", "held_out/loss", "loss"]
    [image] = found.Images("reconstruction")
    assert (image.step, image.width, image.height) == (3, 8, 4)
    [config] = found.Tensors("tiny/text_summary")
    text = config.tensor_proto.string_val[0].decode()
    assert text == "```yaml\ntraining:\n  lr: 0.001\n  betas:\n  - 0.9\n  - 0.95\n```"


@needs_tensorboard
def test_a_resume_supersedes_later_steps_in_tensorboard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = open_one("tensorboard", tmp_path)
    for step in range(1, 11):
        tracker.log(step, {"loss": float(step)})
    tracker.close()
    tracker = open_one("tensorboard", tmp_path, since_step=6)
    for step in (7, 8):
        tracker.log(step, {"loss": 100.0 + step})
    tracker.close()
    assert curve(tmp_path, "loss") == [*((step, step) for step in range(1, 7)), (7, 107), (8, 108)]
    assert len(events(tmp_path).Tensors("tiny/text_summary")) == 1


class FakeWandB(ModuleType):
    """A fake of wandb that records its calls."""

    def __init__(self, *, is_logged_in: bool) -> None:
        super().__init__("wandb")
        self.is_logged_in = is_logged_in
        self.started: list[dict[str, Any]] = []
        self.axes: list[tuple[str, str | None]] = []
        self.rows: list[dict[str, Any]] = []
        self.finished = 0
        self.is_full = False

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt  # a run may have no user at its terminal
        assert not verify  # nor a network
        return self.is_logged_in

    def Settings(self, **settings: str) -> dict[str, str]:  # noqa: N802 - the name in wandb
        return settings

    def Image(self, path: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(path=path)

    def init(self, **options: Any) -> SimpleNamespace:
        self.started.append(options)
        return SimpleNamespace(define_metric=self._define, log=self._log, finish=self._finish)

    def _define(self, name: str, step_metric: str | None = None) -> None:
        self.axes.append((name, step_metric))

    def _log(self, row: dict[str, Any]) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.rows.append(row)

    def _finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandB:
    fake = FakeWandB(is_logged_in=False)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return fake


def test_wandb_receives_everything_with_a_step_metric(tmp_path: Path, wandb: FakeWandB) -> None:
    tracker = open_one("wandb", tmp_path)
    tracker.log(3, ROW)
    tracker.log_figure(3, "reconstruction", tmp_path / "red.png")
    tracker.close()
    [started] = wandb.started
    assert started == {
        "project": "c2fmae",
        "name": "tiny",
        "id": (tmp_path / "wandb-id").read_text(),
        "resume": "allow",
        "dir": str(tmp_path),
        "config": CONFIG,
        "mode": "offline",
        "settings": {"console": "off"},
    }
    assert wandb.axes == [("step", None), ("*", "step")]
    assert wandb.rows == [
        {"step": 3, "loss": 2.5, "alpha": 1.0},
        {"step": 3, "reconstruction": SimpleNamespace(path=str(tmp_path / "red.png"))},
    ]
    assert wandb.finished == 1


def test_a_resume_continues_the_same_wandb_run(tmp_path: Path, wandb: FakeWandB) -> None:
    for since_step in (0, 0, 100):
        open_one("wandb", tmp_path, since_step=since_step)
    (tmp_path / "other").mkdir()
    open_one("wandb", tmp_path / "other")
    first, *same, other = (started["id"] for started in wandb.started)
    assert same == [first, first]
    assert len(first) >= 8
    assert other != first


def test_an_empty_wandb_id_is_replaced(tmp_path: Path, wandb: FakeWandB) -> None:
    (tmp_path / "wandb-id").write_text("")
    open_one("wandb", tmp_path)
    assert wandb.started[0]["id"] == (tmp_path / "wandb-id").read_text() != ""


@pytest.mark.parametrize(
    ("is_logged_in", "variable", "mode"), [(True, None, "online"), (False, None, "offline"), (False, "disabled", None)]
)
def test_wandb_is_offline_unless_logged_in_or_configured(
    tmp_path: Path,
    wandb: FakeWandB,
    monkeypatch: pytest.MonkeyPatch,
    is_logged_in: bool,
    variable: str | None,
    mode: str | None,
) -> None:
    wandb.is_logged_in = is_logged_in
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    open_one("wandb", tmp_path)
    assert wandb.started[0]["mode"] == mode


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorboard", "watching.trackers: 'tensorboard' is not installed. Install it with: pip install 'c2fmae[tb]'"),
        ("wandb", "watching.trackers: 'wandb' is not installed. Install it with: pip install 'c2fmae[wandb]'"),
    ],
)
def test_a_missing_package_is_reported_with_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: TrackerName, message: str
) -> None:
    for module in [name, *(module for module in sys.modules if module.startswith(f"{name}."))]:
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Lacks(name), *sys.meta_path])
    with pytest.raises(UserError) as caught:
        open_one(name, tmp_path)
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


class _Lacks:
    """Where a package is not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_broken_package_is_not_reported_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        open_one("wandb", tmp_path)


def test_a_tracker_that_fails_is_disabled_with_one_warning(
    tmp_path: Path, wandb: FakeWandB, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_one("wandb", tmp_path)
    caplog.set_level(logging.WARNING, "c2fmae")
    tracker.log(1, {"loss": 1.0})
    wandb.is_full = True
    for step in (2, 3):
        tracker.log(step, {"loss": 1.0})
    tracker.close()
    assert [record.getMessage() for record in caplog.records] == [
        "wandb failed, so nothing more of this run is logged to it: OSError: [Errno 28] No space left on device"
    ]
    assert (len(wandb.rows), wandb.finished) == (1, 0)
