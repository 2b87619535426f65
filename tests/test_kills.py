"""A run that is killed at any moment and resumed ends in the same bytes as an uninterrupted one."""

import itertools
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from c2fmae.core.checkpoint import list_checkpoints, load_checkpoint
from c2fmae.eval.classification.result import read_finetune_result
from tests.eval.classification.tiny_finetuning import (
    QUICK_OVERRIDES,
    write_pretrained_checkpoint,
    write_train_test_sets,
)
from tests.run_launcher import LaunchedRun, RunLauncher, read_last_step, set_args, wait_until

pytestmark = pytest.mark.unchecked

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
    *,
    command: tuple[str, ...] = ("pretrain",),
    numbers: tuple[signal.Signals, ...] = (signal.SIGKILL,),
) -> Counter[str]:
    """Run to the end with a kill at each of these moments, and count the kinds of kills.

    Those at the start and in a step are by one of the signals, others by SIGKILL. The moment "worker" is in a step, and
    kills a worker that loads data.
    """
    hits = Counter[str]()
    for moment in moments:
        before = partial_names(out)
        run = launcher.start(*words, "--resume", out=out, command=command, num_processes=processes)
        wait_for_moment(run, moment, rng)
        is_met = moment != "start"  # before the ranks have joined, only the launcher notices a dead one
        victim = rng.choice([None, *range(processes)]) if is_met else None
        number = rng.choice(numbers) if moment in ("start", "step") and len(numbers) > 1 else signal.SIGKILL
        if moment == "worker":
            kill_a_child(run, rng, victim or 0)
        else:
            run.send(number, victim)
        codes = run.wait()
        assert_stopped_without_a_traceback(run, codes, number, is_worker=moment == "worker")
        if codes == [0] * processes:
            break  # it ended before the kill
        hits["kills"] += 1
        hits[f"at {moment}"] += 1
        hits[f"by {number.name}"] += 1
        hits["of all processes" if victim is None else "of one process"] += moment != "worker"
        left = partial_names(out) - before
        hits["inside a save"] += any(name.endswith(".tmp") for name in left)
        hits["inside a removal"] += any(name.endswith((".removed", ".replaced")) for name in left)
    run = launcher.start(*words, "--resume", out=out, command=command, num_processes=processes)
    assert run.wait() == [0] * processes, run.output()
    return hits


def kill_a_child(run: LaunchedRun, rng: random.Random, rank: int = 0) -> None:
    """Kill a process that a rank has started, if it has any."""
    children = run.find_children(rank)
    with suppress(ProcessLookupError):
        if children:
            os.kill(rng.choice(children), signal.SIGKILL)


def assert_stopped_without_a_traceback(
    run: LaunchedRun, codes: list[int], number: signal.Signals, *, is_worker: bool
) -> None:
    """Check the exit codes and outputs of a run that got a signal, or that lost a worker."""
    may_fail = is_worker or number in (signal.SIGKILL, signal.SIGINT)
    assert set(codes) <= {0, 75, 130, -number, *([1] if may_fail else [])}, (codes, run.output())
    if number == signal.SIGINT:  # Python prints a traceback if it arrives during an import or while a worker starts
        return
    for rank in range(len(codes)):
        output = run.output(rank)
        # torch reports a dead worker at any line, also where Python ignores exceptions. A worker's thread that serves
        # file descriptors prints one if the process that it serves is killed.
        allowed = output.count("Exception ignored in")
        allowed += output.count('multiprocessing/resource_sharer.py"') if number == signal.SIGKILL else 0
        assert output.count("Traceback") == allowed, output


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
        "event == 'open' and '.report.html' in str(words[0])",
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


ANY_SIGNAL = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.mark.slow
def test_many_kills_of_all_commands(launcher: RunLauncher, tmp_path: Path) -> None:
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
                workers = 2 if (ema == "null") == (processes == 2) else 0
                moments = ["step", "worker" if workers else rng.choice(["start", "step"]), "save", "save"]
                rng.shuffle(moments)
                words, killed = (*words, *set_args(f"data.workers={workers}")), tmp_path / f"{name}-killed"
                found = kill_and_resume(launcher, words, killed, moments, rng, processes, numbers=ANY_SIGNAL)
                assert_same_end(tmp_path / name, killed)
                assert (killed / "report.html").exists()
                hits += found
                hits[f"processes {processes}"] += found["kills"]
                hits[f"micro-batches {each // micro_batch}"] += found["kills"]
                hits[f"ema {ema}"] += found["kills"]
                hits[f"workers {workers}"] += found["kills"]
                print(name, workers, dict(hits), flush=True)
    hits += kill_fine_tuning(launcher, tmp_path, rng)
    hits += kill_other_commands(launcher, tmp_path / "1-12-null", tmp_path, rng)
    print(dict(hits), flush=True)
    assert hits["kills"] >= 77
    assert hits["inside a save"] >= 10
    for kind in ("at worker", "of one process", "by SIGTERM", "by SIGUSR1", "by SIGINT", *OTHER_COMMANDS):
        assert hits[kind] >= 3


def kill_fine_tuning(launcher: RunLauncher, tmp_path: Path, rng: random.Random) -> Counter[str]:
    """Kill fine-tuning runs, and compare them with one that was not killed."""
    write_train_test_sets(tmp_path / "data", train=48)
    source = write_pretrained_checkpoint(tmp_path / "source")
    words = (
        *(str(source), "--data", str(tmp_path / "data"), "--recipe", "small"),
        *set_args(*QUICK_OVERRIDES, "training.steps=18", "saving.steps=2", "data.workers=2"),
    )
    command, uninterrupted = ("eval", "finetune"), tmp_path / "finetuned"
    run = launcher.start(*words, out=uninterrupted, command=command)
    assert run.wait() == [0], run.output()
    moments = ["step", "save", "worker", "save", "save"]
    killed = tmp_path / "killed-finetuned"
    hits = kill_and_resume(launcher, words, killed, moments, rng, command=command, numbers=ANY_SIGNAL)
    assert_same_end(uninterrupted, killed)
    results = [read_finetune_result(path).metrics for path in (uninterrupted, killed)]
    assert results[0] == results[1]
    return hits


OTHER_COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pack": (("data", "pack", "{data}", "--workers", "2", *set_args("shard_size=2")), ()),
    "corrupt": (("data", "corrupt", "{data}", "--workers", "2", "--only", "noise", "--image-size", "32"), ()),
    "knn": (("eval", "knn", "{run}", "--data", "generated", *set_args("ks=[1]", "workers=2")), ("--out",)),
    "export": (("export", "timm", "{run}"), ()),
}
"""Arguments of commands without --resume, and the option of their output directory."""
KILLS_OF_A_COMMAND = 8


def kill_other_commands(launcher: RunLauncher, run_dir: Path, tmp_path: Path, rng: random.Random) -> Counter[str]:
    """Kill each command at several moments, repeat it, and compare its files with those of one that was not killed."""
    hits = Counter[str]()
    for name, (args, out_option) in OTHER_COMMANDS.items():
        words = [arg.format(data=tmp_path / "data" / "train", run=run_dir) for arg in args]
        uninterrupted, out = tmp_path / name, tmp_path / f"killed-{name}"
        start = time.monotonic()
        run = launcher.start(*words, out=uninterrupted, command=(), out_option=out_option)
        assert run.wait() == [0], run.output()
        duration = time.monotonic() - start
        numbers = itertools.cycle([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        while hits[name] < KILLS_OF_A_COMMAND:
            number = next(numbers)
            run = launcher.start(*words, out=out, command=(), out_option=out_option)
            time.sleep(rng.uniform(0.1, 0.8) * duration)
            is_worker = number == signal.SIGKILL and bool(run.find_children()) and rng.random() < 0.5
            if is_worker:
                kill_a_child(run, rng)
            else:
                run.send(number)
            codes = run.wait()
            assert_stopped_without_a_traceback(run, codes, number, is_worker=is_worker)
            hits["kills"] += codes != [0]
            hits[name] += codes != [0]
            hits[f"by {number.name}"] += codes != [0]
            if codes == [0] or name == "export":  # an export is not continued, but begun again
                shutil.rmtree(out, ignore_errors=True)
        run = launcher.start(*words, out=out, command=(), out_option=out_option)
        assert run.wait() == [0], run.output()
        assert read_results(out) == read_results(uninterrupted)
        print(name, dict(hits), flush=True)
    return hits


def read_results(out: Path) -> dict[str, object]:
    """Return the content of all files of a directory by path; of results, only the metrics."""
    return {
        str(path.relative_to(out)): json.loads(path.read_bytes())["metrics"]
        if path.name == "results.json"
        else path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.suffix not in (".html", ".md")
    }
