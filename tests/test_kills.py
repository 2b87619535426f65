"""A run that is killed, at whatever moment, and resumed ends in the same bytes as one that was left alone."""

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
def few(launcher: RunLauncher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that was left alone."""
    run = launcher.start(*FEW, out=tmp_path_factory.mktemp("few") / "whole")
    assert run.wait() == [0], run.output()
    return run.out


def assert_same_end(one: Path, other: Path) -> None:
    """Compare all that a run ends with, to the bit."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    paths = [list_checkpoints(out / "checkpoints")[-1] for out in (one, other)]
    expected, found = map(load_checkpoint, paths)
    assert expected.step == found.step
    assert list(expected.tensors) == list(found.tensors)
    assert [name for name, tensor in expected.tensors.items() if not tensor.equal(found.tensors[name])] == []
    assert len({(path / "tensors.safetensors").read_bytes() for path in paths}) == 1


def unfinished(out: Path) -> set[str]:
    """Return what a save has made that is no checkpoint yet, or none any more."""
    return {path.name for path in (out / "checkpoints").glob(".*")}


def wait_for_moment(run: LaunchedRun, moment: str, chance: random.Random) -> None:
    """Wait until a run is where it is to be killed."""
    if moment == "start":
        time.sleep(chance.uniform(0, 0.5))
    elif moment == "step":
        run.wait_for_step(read_last_step(run.out) + chance.randint(1, 3))
        time.sleep(chance.uniform(0, 0.1))
    else:
        before = unfinished(run.out)
        wait_until(lambda: bool(unfinished(run.out) - before), run, may_have_ended=False)
        time.sleep(chance.choice([0.0, chance.uniform(0, 0.02)]))


def kill_and_resume(
    launcher: RunLauncher,
    words: tuple[str, ...],
    out: Path,
    moments: list[str],
    chance: random.Random,
    processes: int = 1,
) -> Counter[str]:
    """Run to the end, killed at each of these moments on the way; return what was hit."""
    hits = Counter[str]()
    for moment in moments:
        before = unfinished(out)
        run = launcher.start(*words, "--resume", out=out, num_processes=processes)
        wait_for_moment(run, moment, chance)
        is_met = moment != "start"  # who dies before the processes have met is missed by nobody but what started them
        victim = chance.choice([None, *range(processes)]) if is_met else None
        run.send(signal.SIGKILL, victim)
        codes = run.wait()
        if -signal.SIGKILL not in codes:
            assert codes == [0] * processes, run.output()
            break  # it was over before
        hits["kills"] += 1
        hits[f"at {moment}"] += 1
        hits["of all processes" if victim is None else "of one process"] += 1
        left = unfinished(out) - before
        hits["inside a save"] += any(name.endswith(".tmp") for name in left)
        hits["inside a removal"] += any(name.endswith((".removed", ".replaced")) for name in left)
    run = launcher.start(*words, "--resume", out=out, num_processes=processes)
    assert run.wait() == [0] * processes, run.output()
    return hits


def test_a_run_killed_at_its_start_within_a_step_and_inside_saves_ends_in_the_same_bits(
    launcher: RunLauncher, tmp_path: Path
) -> None:
    words = (*WORDS, *set_args("training.ema=0.9", "training.micro_batch=4"))
    assert launcher.start(*words, out=tmp_path / "whole").wait() == [0]
    hits = kill_and_resume(
        launcher,
        (*words, *set_args("data.workers=2")),
        tmp_path / "killed",
        ["start", "save", "step", "save"],
        random.Random(0),
    )
    assert hits["kills"] == 4
    assert hits["inside a save"] + hits["inside a removal"] >= 1
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_two_processes_killed_together_and_one_alone_end_in_the_same_bits(
    launcher: RunLauncher, tmp_path: Path
) -> None:
    assert launcher.start(*WORDS, out=tmp_path / "whole", num_processes=2).wait() == [0, 0]
    hits = kill_and_resume(launcher, WORDS, tmp_path / "killed", ["step", "save"], random.Random(3), processes=2)
    assert hits["kills"] == 2
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


DIE = """
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
FEW = (
    "c2fmae-debug",
    *set_args(*SMALL, "training.steps=4", "training.ema=0.9", "saving.steps=2", "saving.keep_last=1"),
    *set_args("watching.figures=1", "watching.figures_every=2"),
)


def assert_resumed_to_the_end(launcher: RunLauncher, whole: Path, killed: Path) -> None:
    run = launcher.start(*FEW, "--resume", out=killed)
    assert run.wait() == [0], run.output()
    assert_same_end(whole, killed)
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert (killed / "figures/step-00000004.png").read_bytes() == (whole / "figures/step-00000004.png").read_bytes()
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
def test_a_run_killed_before_a_file_operation_is_resumed_to_the_end(
    launcher: RunLauncher, few: Path, tmp_path: Path, moment: str
) -> None:
    run = launcher.start(
        *FEW, out=tmp_path / "killed", setup_code=DIE.format(out=str(tmp_path / "killed"), when=moment)
    )
    assert run.wait() == [-signal.SIGKILL], run.output()
    assert_resumed_to_the_end(launcher, few, tmp_path / "killed")


@pytest.mark.slow
def test_a_run_killed_before_any_of_its_file_operations_is_resumed_to_the_end(
    launcher: RunLauncher, few: Path, tmp_path: Path
) -> None:
    for number in itertools.count(1):
        out = tmp_path / f"killed-{number}"
        run = launcher.start(*FEW, out=out, setup_code=DIE.format(out=str(out), when=f"number == {number}"))
        if run.wait() == [0]:
            break
        print(number, run.output(), flush=True)
        assert_resumed_to_the_end(launcher, few, out)
        shutil.rmtree(out)
    assert number > 30


@pytest.mark.slow
def test_many_kills_of_runs_of_all_kinds(launcher: RunLauncher, tmp_path: Path) -> None:
    chance, hits = random.Random(1), Counter[str]()
    for processes in (1, 2, 3):
        each = 12 // processes
        for micro_batch in (each, each // 2):
            for ema in ("null", "0.9"):
                name = f"{processes}-{micro_batch}-{ema}"
                words = (*WORDS, *set_args("training.batch_size=12", f"training.micro_batch={micro_batch}"))
                words = (*words, *set_args(f"training.ema={ema}"))
                whole = launcher.start(*words, out=tmp_path / name, num_processes=processes)
                assert whole.wait() == [0] * processes, whole.output()
                for workers in (0, 2):
                    moments = chance.sample(["start", "step", "step", "save", "save", "save"], 6)
                    hands = set_args(f"data.workers={workers}")
                    killed = tmp_path / f"{name}-{workers}"
                    found = kill_and_resume(launcher, (*words, *hands), killed, moments, chance, processes)
                    assert_same_end(tmp_path / name, killed)
                    hits += found
                    hits[f"processes {processes}"] += found["kills"]
                    hits[f"micro-batches {each // micro_batch}"] += found["kills"]
                    hits[f"ema {ema}"] += found["kills"]
                    hits[f"workers {workers}"] += found["kills"]
                    print(name, workers, dict(hits), flush=True)
    assert hits["kills"] >= 20
    assert hits["inside a save"] >= 10
