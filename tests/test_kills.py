"""A run that is killed at any moment and resumed ends in the same bytes as an uninterrupted one."""

import itertools
import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from c2fmae.core.checkpoint import list_checkpoints, load_checkpoint
from tests.run_launcher import LaunchedRun, RunLauncher, read_last_step, set_args, wait_until

pytestmark = pytest.mark.once

STEPS = 18
SMALL = (
    "method.encoder.depth=2",
    "method.encoder.drop_path=0.1",
    "method.decoder.options.depth=1",
    "data.held_out_samples=4",
)
WORDS = (
    "c2fmae-debug",
    *set_args(*SMALL, f"training.steps={STEPS}", "saving.steps=2", "watching.figures=0"),
)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunLauncher]:
    with RunLauncher(tmp_path_factory.mktemp("logs")) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def short_run(launcher: RunLauncher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a short run that was not interrupted."""
    run = launcher.start(*SHORT, out=tmp_path_factory.mktemp("short_run") / "uninterrupted")
    assert run.wait() == [0], run.output()
    return run.out


def assert_same_end(one: Path, other: Path) -> None:
    """Compare the metrics and last checkpoints of two runs to the bit."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    paths = [list_checkpoints(out / "checkpoints")[-1] for out in (one, other)]
    expected, found = map(load_checkpoint, paths)
    assert expected.step == found.step
    assert list(expected.tensors) == list(found.tensors)
    assert [name for name, tensor in expected.tensors.items() if not tensor.equal(found.tensors[name])] == []
    assert len({(path / "tensors.safetensors").read_bytes() for path in paths}) == 1


def partial_names(out: Path) -> set[str]:
    """Return the names of checkpoints that are being written or removed."""
    return {path.name for path in (out / "checkpoints").glob(".*")}


def wait_for_moment(run: LaunchedRun, moment: str, rng: random.Random) -> None:
    """Wait until a run is at the moment at which it will be killed."""
    if moment == "start":
        time.sleep(rng.uniform(0, 0.5))
    elif moment == "step":
        run.wait_for_step(read_last_step(run.out) + rng.randint(1, 3))
        time.sleep(rng.uniform(0, 0.1))
    else:
        before = partial_names(run.out)
        wait_until(lambda: bool(partial_names(run.out) - before), run, may_have_ended=False)
        time.sleep(rng.choice([0.0, rng.uniform(0, 0.02)]))


def kill_and_resume(
    launcher: RunLauncher,
    words: tuple[str, ...],
    out: Path,
    moments: list[str],
    rng: random.Random,
    processes: int = 1,
) -> Counter[str]:
    """Run to the end with a kill at each of these moments, and count the kinds of kills."""
    hits = Counter[str]()
    for moment in moments:
        before = partial_names(out)
        run = launcher.start(*words, "--resume", out=out, num_processes=processes)
        wait_for_moment(run, moment, rng)
        is_met = moment != "start"  # before the ranks have joined, only the launcher notices a dead one
        victim = rng.choice([None, *range(processes)]) if is_met else None
        run.send(signal.SIGKILL, victim)
        codes = run.wait()
        if -signal.SIGKILL not in codes:
            assert codes == [0] * processes, run.output()
            break  # it ended before the kill
        hits["kills"] += 1
        hits[f"at {moment}"] += 1
        hits["of all processes" if victim is None else "of one process"] += 1
        left = partial_names(out) - before
        hits["inside a save"] += any(name.endswith(".tmp") for name in left)
        hits["inside a removal"] += any(name.endswith((".removed", ".replaced")) for name in left)
    run = launcher.start(*words, "--resume", out=out, num_processes=processes)
    assert run.wait() == [0] * processes, run.output()
    return hits


def test_a_run_killed_at_its_start_in_a_step_and_in_saves_ends_in_the_same_bits(
    launcher: RunLauncher, tmp_path: Path
) -> None:
    words = (*WORDS, *set_args("training.ema=0.9", "training.micro_batch=4"))
    assert launcher.start(*words, out=tmp_path / "uninterrupted").wait() == [0]
    hits = kill_and_resume(
        launcher,
        (*words, *set_args("data.workers=2")),
        tmp_path / "killed",
        ["start", "save", "step", "save"],
        random.Random(0),
    )
    assert hits["kills"] == 4
    assert hits["inside a save"] + hits["inside a removal"] >= 1
    assert_same_end(tmp_path / "uninterrupted", tmp_path / "killed")


def test_two_processes_killed_together_or_singly_end_in_the_same_bits(launcher: RunLauncher, tmp_path: Path) -> None:
    assert launcher.start(*WORDS, out=tmp_path / "uninterrupted", num_processes=2).wait() == [0, 0]
    hits = kill_and_resume(launcher, WORDS, tmp_path / "killed", ["step", "save"], random.Random(3), processes=2)
    assert hits["kills"] == 2
    assert_same_end(tmp_path / "uninterrupted", tmp_path / "killed")


KILL_BEFORE = """
import os, signal, sys
number = 0
def watch(event, words):
    global number
    is_writing = event == "open" and words[2] & (os.O_WRONLY | os.O_RDWR)
    if (is_writing or event in ("os.mkdir", "os.rename", "os.rmdir")) and os.path.basename({out!r}) in str(words[0]):
        number += 1
        if {when}:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""
SHORT = (
    "c2fmae-debug",
    *set_args(*SMALL, "training.steps=4", "training.ema=0.9", "saving.steps=2", "saving.keep_last=1"),
    *set_args("watching.figures=1", "watching.figures_every=2"),
)


def assert_resumed_to_the_end(launcher: RunLauncher, uninterrupted: Path, killed: Path) -> None:
    run = launcher.start(*SHORT, "--resume", out=killed)
    assert run.wait() == [0], run.output()
    assert_same_end(uninterrupted, killed)
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in uninterrupted.iterdir())
    assert (killed / "figures/step-00000004.png").read_bytes() == (
        uninterrupted / "figures/step-00000004.png"
    ).read_bytes()
    assert json.loads((killed / "state.json").read_bytes())["status"] == "finished"


@pytest.mark.parametrize(
    "moment",
    [
        "event == 'os.rename' and '.config.yaml' in str(words[0])",
        "event == 'os.rename' and '.step-00000004.tmp' in str(words[0])",
        "event == 'os.rename' and 'checkpoints/step-00000002' in str(words[0])",
        "event == 'open' and '.step-00000004.png' in str(words[0])",
        "event == 'os.rename' and '.state.json' in str(words[0]) and number > 20",
    ],
)
def test_a_run_killed_before_a_file_operation_resumes_to_the_end(
    launcher: RunLauncher, short_run: Path, tmp_path: Path, moment: str
) -> None:
    run = launcher.start(
        *SHORT, out=tmp_path / "killed", setup_code=KILL_BEFORE.format(out=str(tmp_path / "killed"), when=moment)
    )
    assert run.wait() == [-signal.SIGKILL], run.output()
    assert_resumed_to_the_end(launcher, short_run, tmp_path / "killed")


@pytest.mark.slow
def test_a_run_killed_before_any_file_operation_resumes_to_the_end(
    launcher: RunLauncher, short_run: Path, tmp_path: Path
) -> None:
    for number in itertools.count(1):
        out = tmp_path / f"killed-{number}"
        run = launcher.start(*SHORT, out=out, setup_code=KILL_BEFORE.format(out=str(out), when=f"number == {number}"))
        if run.wait() == [0]:
            break
        print(number, run.output(), flush=True)
        assert_resumed_to_the_end(launcher, short_run, out)
        shutil.rmtree(out)
    assert number > 30


@pytest.mark.slow
def test_many_kills_of_all_kinds_of_runs(launcher: RunLauncher, tmp_path: Path) -> None:
    rng, hits = random.Random(1), Counter[str]()
    for processes in (1, 2, 3):
        each = 12 // processes
        for micro_batch in (each, each // 2):
            for ema in ("null", "0.9"):
                name = f"{processes}-{micro_batch}-{ema}"
                words = (*WORDS, *set_args("training.batch_size=12", f"training.micro_batch={micro_batch}"))
                words = (*words, *set_args(f"training.ema={ema}"))
                uninterrupted = launcher.start(*words, out=tmp_path / name, num_processes=processes)
                assert uninterrupted.wait() == [0] * processes, uninterrupted.output()
                for workers in (0, 2):
                    moments = rng.sample(["start", "step", "step", "save", "save", "save"], 6)
                    workers_args = set_args(f"data.workers={workers}")
                    killed = tmp_path / f"{name}-{workers}"
                    found = kill_and_resume(launcher, (*words, *workers_args), killed, moments, rng, processes)
                    assert_same_end(tmp_path / name, killed)
                    hits += found
                    hits[f"processes {processes}"] += found["kills"]
                    hits[f"micro-batches {each // micro_batch}"] += found["kills"]
                    hits[f"ema {ema}"] += found["kills"]
                    hits[f"workers {workers}"] += found["kills"]
                    print(name, workers, dict(hits), flush=True)
    assert hits["kills"] >= 20
    assert hits["inside a save"] >= 10
