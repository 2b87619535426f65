from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from c2fmae.core import saving
from c2fmae.core.checkpoint import list_checkpoints, load_checkpoint
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.experiment_config import SavingConfig
from c2fmae.core.loop import TrainingState
from c2fmae.core.saving import Saver
from c2fmae.core.training import TrainingConfig

ALONE = World()


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def training(step: int = 0) -> TrainingState:
    found = TrainingState.create(nn.Linear(2, 2), TrainingConfig(steps=9, lr=0.1, ema=0.9))
    found.step = step
    return found


def saver(folder: Path, world: World = ALONE, **settings: Any) -> Saver:
    return Saver(folder, SavingConfig(**settings), world, {"classes": ["sky"]})


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_a_save_contains_the_complete_training_state(tmp_path: Path) -> None:
    each = training(3)
    with saver(tmp_path) as saves:
        saves.save(each)
    found = load_checkpoint(tmp_path / "step-00000003")
    assert (found.step, found.metadata) == (3, {"classes": ["sky"], "bad_steps": 0})
    assert (
        found.tensors.keys() == each.gather_tensors().keys() == {"model/weight", "model/bias", "ema/weight", "ema/bias"}
    )
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in each.gather_tensors().items())


def test_a_save_is_overdue_after_the_minutes_in_the_config(tmp_path: Path, clock: Clock) -> None:
    each = training(1)
    with saver(tmp_path, minutes=0.5) as saves:
        for now, is_late in ((1000, False), (1030, False), (1030.1, True), (1090, True)):
            clock.now = now
            assert saves.is_overdue == is_late
        saves.save(each)
        for now, is_late in ((1090, False), (1120, False), (1121, True)):
            clock.now = now
            assert saves.is_overdue == is_late


def test_a_save_is_never_overdue_without_minutes(tmp_path: Path, clock: Clock) -> None:
    with saver(tmp_path, minutes=None) as saves:
        clock.now += 1e9
        assert saves.is_overdue is False


def test_only_the_main_process_writes_and_reads_the_clock(tmp_path: Path, clock: Clock) -> None:
    with saver(tmp_path / "new", World(1, 2)) as saves:
        clock.now += 1e9
        assert saves.is_overdue is False
        saves.save(training(1))
    assert not (tmp_path / "new").exists()


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    each = training(4)
    before = each.gather_tensors()["model/weight"].clone()
    with saver(tmp_path) as saves:
        saves.save(each)
        with torch.no_grad():
            each.model.get_parameter("weight").zero_()
        saves.save(each)
        each.step = 5
        saves.save(each)
    assert names(tmp_path) == ["step-00000004", "step-00000005"]
    found = [load_checkpoint(path).tensors["model/weight"] for path in list_checkpoints(tmp_path)]
    assert torch.equal(found[0], before)
    assert not found[1].any()


def test_the_number_of_bad_steps_is_saved(tmp_path: Path) -> None:
    each = training(2)
    each.bad_steps = 3
    with saver(tmp_path) as saves:
        saves.save(each)
    assert load_checkpoint(tmp_path / "step-00000002").metadata == {"classes": ["sky"], "bad_steps": 3}


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, clock: Clock, spoilt: float) -> None:
    each = training(2)
    weight = each.model.get_parameter("weight")
    good = weight[1, 1].item()
    with saver(tmp_path, minutes=1) as saves:
        clock.now += 100
        for value, is_late in ((spoilt, True), (good, False)):  # so it is tried again after the next step
            with torch.no_grad():
                weight[1, 1] = value
            saves.save(each)
            assert saves.is_overdue == is_late
            each.step += 1
    assert names(tmp_path) == ["step-00000003"]


def test_training_during_a_save_does_not_change_the_saved_weights(tmp_path: Path) -> None:
    each = training(1)
    before = {name: tensor.clone() for name, tensor in each.gather_tensors().items()}
    with saver(tmp_path) as saves:
        saves.save(each)
        with torch.no_grad():
            each.model.get_parameter("weight").zero_()
    found = load_checkpoint(tmp_path / "step-00000001").tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())


def test_the_last_checkpoints_and_multiples_remain(tmp_path: Path) -> None:
    each = training()
    with saver(tmp_path, keep_last=2, keep_every=3) as saves:
        for step in range(1, 9):
            each.step = step
            saves.save(each)
    assert names(tmp_path) == [f"step-0000000{step}" for step in (3, 6, 7, 8)]


def test_the_saver_waits_for_the_last_save(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError) as caught, saver(blocked) as saves:
        saves.save(training(1))
    assert str(caught.value) == (
        f"{blocked}: the checkpoint of step 1 could not be written: File exists. No earlier one is intact. "
        "Fix the cause and run again"
    )


def test_a_failed_save_does_not_hide_the_error_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")

    def run() -> None:
        with saver(blocked) as saves:
            saves.save(training(1))
            raise ValueError("boom")

    with pytest.raises(ValueError, match="^boom$"):
        run()
    (message,) = caplog.messages
    assert message.startswith(f"{blocked}: the checkpoint of step 1 could not be written: File exists.")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 0}, "steps: input should be greater than or equal to 1, got 0"),
        ({"minutes": 0}, "minutes: input should be greater than 0, got 0"),
        ({"keep_last": 0}, "keep_last: input should be greater than or equal to 1, got 0"),
    ],
)
def test_invalid_saving_settings_are_rejected(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        SavingConfig.from_dict(settings, source="saving")
    assert str(caught.value) == f"saving: {expected}"
