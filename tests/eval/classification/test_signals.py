"""Fine-tuning commands that are terminated by a signal."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from c2fmae.core.checkpoint import list_checkpoints
from c2fmae.core.run_dir import RunDir
from tests.eval.classification.tiny_finetuning import (
    QUICK_OVERRIDES,
    write_pretrained_checkpoint,
    write_train_test_sets,
)
from tests.run_launcher import RunLauncher, set_args

pytestmark = pytest.mark.once

SLOW_SAVE = """
import time
from c2fmae.core import checkpoint

write = checkpoint._write_checkpoint
checkpoint._write_checkpoint = lambda *args: (time.sleep(4), write(*args))[1]
"""


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunLauncher]:
    with RunLauncher(tmp_path_factory.mktemp("logs")) as launcher:
        yield launcher


def test_two_terminated_processes_save_a_checkpoint_first(launcher: RunLauncher, tmp_path: Path) -> None:
    source, data = write_pretrained_checkpoint(tmp_path / "source"), write_train_test_sets(tmp_path / "data")
    sets = ["--data", str(data / "train"), "--test", str(data / "test")]
    args = [str(source), *sets, *set_args(*QUICK_OVERRIDES, "training.steps=2000", "watching.held_out_every=2000")]
    command = ("eval", "finetune")
    run = launcher.start(*args, out=tmp_path / "run", command=command, num_processes=2, setup_code=SLOW_SAVE)
    run.wait_for_step(2)
    run.send(signal.SIGTERM)
    assert run.wait() == [75, 75], run.output() + run.output(1)
    (checkpoint,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    state = RunDir(tmp_path / "run").read_state() or {}
    assert (state["status"], f"step-{state['step']:08d}") == ("saved-on-signal", checkpoint.name)
    assert "next: the same command with --resume" in run.output()
