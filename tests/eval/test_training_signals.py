"""Trainings on a backbone that a signal stops: between two steps, and in a test."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from c2fmae.core.checkpoint import list_checkpoints
from c2fmae.core.run_dir import RunDir
from tests.cli.commands import run_eval
from tests.eval.classification.tiny_finetuning import (
    QUICK_OVERRIDES,
    write_pretrained_checkpoint,
    write_train_test_sets,
)
from tests.eval.segmentation import tiny_segmentation
from tests.run_launcher import RunLauncher, set_args, wait_until

pytestmark = pytest.mark.unchecked

SLOW_SAVE = """
import time
from c2fmae.core import checkpoint

write = checkpoint._write_checkpoint
checkpoint._write_checkpoint = lambda *args: (time.sleep(4), write(*args))[1]
"""

SLOW_TEST = """
import time
from c2fmae.eval.segmentation import evaluator

predict = evaluator.predict_ids
evaluator.predict_ids = lambda *args, **kwargs: (time.sleep(0.1), predict(*args, **kwargs))[1]
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


def test_two_terminated_processes_stop_their_final_test_and_continue_it(launcher: RunLauncher, tmp_path: Path) -> None:
    source = tiny_segmentation.write_source(tmp_path / "source")
    data = tiny_segmentation.write_halves(tmp_path / "data", test=40)
    settings = (*tiny_segmentation.QUICK_OVERRIDES, "watching.held_out_every=4", "data.workers=1")
    args = [str(source), "--data", str(data), *set_args(*settings)]
    out, command = tmp_path / "run", ("eval", "segment")
    run = launcher.start(*args, out=out, command=command, num_processes=2, setup_code=SLOW_TEST)
    predictions = out / "evaluations/segment/predictions"
    wait_until(lambda: any(predictions.glob("*.png")), run, may_have_ended=False)
    run.send(signal.SIGTERM)
    assert run.wait() == [75, 75], run.output() + run.output(1)
    assert (RunDir(out).read_state() or {})["status"] == "saved-on-signal"
    assert f"saved-on-signal at step 4: {out}\nnext: the same command with --resume" in run.output()
    stored = {path: path.stat().st_mtime_ns for path in predictions.glob("*.png")}
    assert len(stored) < 40
    run_eval("segment", *args, "--out", str(out), "--resume")
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    assert len(list(predictions.glob("*.png"))) == 40
