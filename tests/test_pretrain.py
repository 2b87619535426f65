"""Runs in processes of their own: signals, resuming, full disks, changed configs and damaged files."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from c2fmae.core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from c2fmae.core.run_dir import RunDir
from c2fmae.data.generated import GeneratedScenes
from tests.run_launcher import RunLauncher, find_free_port, read_last_step, read_metric_rows, set_args, wait_until

pytestmark = pytest.mark.unchecked

WORDS = (
    "c2fmae-debug",
    *set_args(
        "training.steps=8",
        "training.warmup_steps=2",
        "training.precision=fp32",
        "method.encoder.depth=2",
        "method.decoder.options.depth=1",
        "saving.steps=4",
        "watching.figures=0",
        "data.held_out_samples=4",
    ),
)
LONGER = set_args("training.steps=1000")  # longer than any test waits
AFTER_SPLIT = """
import os
from c2fmae.methods.masked.task import PretrainingTask

split = PretrainingTask.split

def do(self, batch, *, num_micro_batches, step, progress, world):
    made = split(self, batch, num_micro_batches=num_micro_batches, step=step, progress=progress, world=world)
    if {when}:
        {what}
    return made

PretrainingTask.split = do
"""


SLOW = """
import time
from c2fmae.methods.masked.task import PretrainingTask

counts = PretrainingTask.compute_counts
PretrainingTask.compute_counts = lambda self, part: (time.sleep(0.3), counts(self, part))[1]
"""


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunLauncher]:
    with RunLauncher(tmp_path_factory.mktemp("logs")) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def uninterrupted(launcher: RunLauncher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was not interrupted."""
    run = launcher.start(*WORDS, out=tmp_path_factory.mktemp("runs") / "uninterrupted")
    assert run.wait() == [0], run.output()
    return run.out


def poison(when: str) -> str:
    """Return setup code that makes an image not finite."""
    return AFTER_SPLIT.format(when=when, what='made[-1].maps["rgb"][0] = float("nan")')


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def state_of(out: Path) -> dict[str, object]:
    state = RunDir(out).read_state() or {}
    return {key: value for key, value in state.items() if key != "time"}


def steps_of(out: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in sorted((out / "checkpoints").glob("step-*"))]


def assert_ends_as(uninterrupted: Path, out: Path) -> None:
    assert (out / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    expected, found = (load_checkpoint(path / "checkpoints" / "step-00000008").tensors for path in (uninterrupted, out))
    assert [name for name in expected.keys() | found if not expected[name].equal(found[name])] == []
    assert state_of(out) == {"status": "finished", "step": 8}


def write_folder(root: Path, *, count: int = 32, classes: Sequence[str] = GeneratedScenes.classes) -> None:
    """Write generated scenes to a directory of images and maps."""
    scenes = GeneratedScenes(size=64, length=count, difficulty="easy")
    for index, key in enumerate(scenes.keys):
        for name, ids in scenes[index].maps.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray((ids.permute(1, 2, 0) if name == "rgb" else ids).numpy()).save(root / name / f"{key}.png")
    info = {"name": root.name, "classes": [{"name": name} for name in classes]}
    (root / "dataset.json").write_text(json.dumps(info))


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_metrics(
    launcher: RunLauncher, uninterrupted: Path, tmp_path: Path, workers: int
) -> None:
    run = launcher.start(*WORDS, *set_args(f"data.workers={workers}"), out=tmp_path / "run")
    assert run.wait() == [0], run.output()
    assert_ends_as(uninterrupted, tmp_path / "run")


@pytest.mark.numeric
def test_a_run_stopped_repeatedly_by_signals_ends_in_the_same_bytes(
    launcher: RunLauncher, uninterrupted: Path, tmp_path: Path
) -> None:
    words, out = (*WORDS, *set_args("saving.steps=null", "data.workers=2")), tmp_path / "run"
    for step, number, code in ((2, signal.SIGTERM, 75), (4, signal.SIGUSR1, 75), (7, signal.SIGINT, 130)):
        stop = AFTER_SPLIT.format(when=f"step + 2 == {step}", what=f"os.killpg(0, {number})")  # its workers too
        run = launcher.start(*words, "--resume", out=out, setup_code=stop)
        assert run.wait() == [code], run.output()
        assert state_of(out) == {"status": "saved-on-signal", "step": step}
        assert steps_of(out)[-1] == step
        assert run.output().splitlines()[-2:] == [
            f"saved-on-signal at step {step}: {out}",
            f"next: c2fmae pretrain {out} --resume",
        ]
    run = launcher.start(*words, "--resume", out=out)
    assert run.wait() == [0], run.output()
    assert_ends_as(uninterrupted, out)


@pytest.mark.numeric
def test_probes_change_no_weights_and_are_the_same_after_a_resume(
    launcher: RunLauncher, uninterrupted: Path, tmp_path: Path
) -> None:
    settings = ("watching.probes.data=generated", "watching.probes.train_samples=16", "watching.probes.test_samples=8")
    words = (*WORDS, *set_args(*settings, "watching.probes.every=2", "saving.steps=null"))
    probed = launcher.start(*words, out=tmp_path / "probed")
    stop = AFTER_SPLIT.format(when="step + 2 == 4", what="os.kill(os.getpid(), 15)")
    stopped = launcher.start(*words, out=tmp_path / "stopped", setup_code=stop)
    assert (probed.wait(), stopped.wait()) == ([0], [75]), stopped.output()
    assert read_metric_rows(stopped.out)[-1]["step"] == 4
    assert "probe/knn" not in read_metric_rows(stopped.out)[-1]
    resumed = launcher.start(*words, "--resume", out=tmp_path / "stopped")
    assert resumed.wait() == [0], resumed.output()
    assert_ends_as(probed.out, resumed.out)
    rows = read_metric_rows(probed.out)
    assert [row["step"] for row in rows if {"probe/knn", "probe/linear"} < row.keys()] == [0, 2, 4, 6, 8]
    assert [row for row in rows if "probe/knn" not in row] == read_metric_rows(uninterrupted)
    expected, found = (
        load_checkpoint(out / "checkpoints/step-00000008").tensors for out in (uninterrupted, probed.out)
    )
    assert [name for name in expected.keys() | found if not expected[name].equal(found[name])] == []
    assert "step 4: probes: k-NN " in resumed.output()
    assert "Probes during training" in (resumed.out / "report.html").read_text(encoding="utf-8")


def test_a_second_ctrl_c_exits_at_once(launcher: RunLauncher, tmp_path: Path) -> None:
    out, twice = tmp_path / "run", "for _ in range(2): os.kill(os.getpid(), 2)"
    run = launcher.start(*WORDS, out=out, setup_code=AFTER_SPLIT.format(when="step == 2", what=twice))
    assert run.wait() == [130], run.output()
    assert steps_of(out) == []
    assert state_of(out) == {"status": "failed", "step": 2, "why": "KeyboardInterrupt"}


@pytest.mark.numeric
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_resumed_with_another_number_of_processes_has_the_same_data_and_masks(
    launcher: RunLauncher, uninterrupted: Path, tmp_path: Path, before: int, after: int
) -> None:
    out = tmp_path / "run"
    stop = AFTER_SPLIT.format(when=f"step == 1 and world.rank == {before - 1}", what="os.kill(os.getpid(), 15)")
    run = launcher.start(*WORDS, out=out, num_processes=before, setup_code=stop)
    assert run.wait() == [75] * before, run.output()  # one rank gets the signal, all ranks stop
    assert steps_of(out) == [3]
    run = launcher.start(*WORDS, "--resume", out=out, num_processes=after)
    assert run.wait() == [0] * after, run.output()
    assert run.output().splitlines()[:3] == [
        "resuming at step 3",
        f"  changed: processes {before} → {after}",
        "  data and masks stay the same, but results may differ in their last bits",
    ]
    expected, found = read_metric_rows(uninterrupted), read_metric_rows(out)
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_under_torchrun_a_run_saves_on_a_signal_and_exits_when_a_process_dies(
    tmp_path: Path, number: signal.Signals
) -> None:
    out, folder = tmp_path / "run", Path(sys.executable).parent
    command = [str(folder / "torchrun"), "--nproc-per-node=2", "--no-python", f"--master-port={find_free_port()}"]
    command += [str(folder / "c2fmae"), "pretrain", *WORDS, *LONGER, "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        torchrun = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    children = list[int]()
    try:
        end = time.monotonic() + 60
        while read_last_step(out) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        tasks = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children")
        children = [int(child) for child in tasks.read_text().split()]
        os.kill(torchrun.pid if number == signal.SIGTERM else children[1], number)
        torchrun.wait(timeout=60)
        log_text = (tmp_path / "log").read_text()
        if number == signal.SIGTERM:
            assert state_of(out) == {"status": "saved-on-signal", "step": read_last_step(out)}, log_text
            assert steps_of(out)[-1] == read_last_step(out)
        else:
            assert "exitcode  : -9" in log_text
            assert "c2fmae/pretrain.py" not in log_text  # the only traceback is that of torchrun
    finally:
        for process in (torchrun.pid, *children):
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        torchrun.wait()


def test_a_step_that_is_not_finite_is_skipped_and_recorded(launcher: RunLauncher, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = launcher.start(*WORDS, out=out, setup_code=poison("step == 3"))
    assert run.wait() == [0], run.output()
    assert "step 4 was skipped: its loss or gradient is not finite\n" in run.output()
    bad = {row["step"]: row for row in read_metric_rows(out) if "skipped" in row}
    assert list(bad) == [4]
    assert bad[4]["skipped"] == "not finite"
    assert [bad[4][name] for name in ("loss", "loss/rgb", "grad_norm")] == [None] * 3
    details = json.loads((out / "skipped/step-00000004-rank-0.json").read_text())
    assert (details["step"], details["grad_norm"]) == (4, None)
    (micro_batch,) = details["micro_batches"]
    assert len(micro_batch["keys"]) == 8
    assert {"loss", "loss/semantic", "loss/instance", "loss/rgb"} < micro_batch.keys()
    assert steps_of(out) == [4, 8]


def test_the_last_checkpoint_is_saved_if_the_last_step_is_not_finite(launcher: RunLauncher, tmp_path: Path) -> None:
    run = launcher.start(*WORDS, out=tmp_path / "run", setup_code=poison("step == 7"))
    assert run.wait() == [0], run.output()
    assert steps_of(tmp_path / "run") == [4, 8]


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_step_on_all(launcher: RunLauncher, tmp_path: Path) -> None:
    out, nan = tmp_path / "run", poison("step == 3 and world.rank == 1")
    run = launcher.start(*WORDS, *set_args("training.micro_batch=2"), out=out, num_processes=2, setup_code=nan)
    assert run.wait() == [0, 0], run.output()
    assert [row["step"] for row in read_metric_rows(out) if "skipped" in row] == [4]
    details = [json.loads((out / f"skipped/step-00000004-rank-{rank}.json").read_text()) for rank in range(2)]
    is_finite = [[each["loss"] is not None for each in rank["micro_batches"]] for rank in details]
    assert is_finite == [[True, True], [True, False]]
    assert steps_of(out) == [4, 8]


def test_too_many_bad_steps_stop_the_run_and_leave_a_finite_checkpoint(
    launcher: RunLauncher, uninterrupted: Path, tmp_path: Path
) -> None:
    out, words = tmp_path / "run", (*WORDS, *set_args("training.max_bad_steps=3"))
    run = launcher.start(*words, out=out, num_processes=2, setup_code=poison("step > 4 and world.rank == 1"))
    assert run.wait() == [1, 1]
    for rank in range(2):
        assert run.output(rank).splitlines()[-1] == (
            "error: the loss or gradient was not finite in 3 steps in a row, up to step 8. The last checkpoint is "
            f"step-00000004. {out}/skipped/step-00000008-rank-{rank}.json lists samples and losses. Resume with a "
            "lower learning rate, training.clip=1 or training.precision=fp32"
        )
        assert "Traceback" not in run.output(rank)
    assert state_of(out)["status"] == "failed"
    run = launcher.start(*words, "--resume", out=out)
    assert run.wait() == [0], run.output()
    assert read_metric_rows(out) == [pytest.approx(row, rel=1e-4) for row in read_metric_rows(uninterrupted)]


def test_a_run_is_not_started_twice_and_a_finished_one_is_not_changed(
    launcher: RunLauncher, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    before = files_of(out)
    run = launcher.start(*WORDS, out=out)
    assert run.wait() == [2]
    assert run.output() == f"error: {out}: contains a run. Use --resume to continue it, or choose another --out\n"
    run = launcher.start(*WORDS, "--resume", out=out)
    assert run.wait() == [0]
    assert run.output().startswith(f"{out}: all 8 steps are done\nfinished at step 8: {out}\n")
    assert files_of(out) == before


def test_two_runs_cannot_use_one_directory(launcher: RunLauncher, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = launcher.start(*WORDS, *LONGER, *set_args("data.workers=2"), out=out)
    first.wait_for_step(1)
    second = launcher.start(*WORDS, *LONGER, "--resume", out=out, num_processes=2)
    assert second.wait() == [2, 1]
    assert second.output() == f"error: {out}: is in use by another run. Wait for it, or choose another --out\n"
    assert "Traceback" not in second.output(1)
    first.send(signal.SIGKILL, 0)  # its workers live for a while, and hold nothing
    assert first.wait() == [-signal.SIGKILL]
    before = read_last_step(out)
    third = launcher.start(*WORDS, *LONGER, "--resume", out=out)
    third.wait_for_step(before + 1)
    third.send(signal.SIGTERM)
    assert third.wait() == [75], third.output()


def test_a_changed_config_is_rejected_unless_it_is_accepted(
    launcher: RunLauncher, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    free = set_args("data.workers=1", "saving.steps=3", "watching.log_every=1")
    changed = (*WORDS, *free, *set_args("training.lr=2e-3", "training.ema=0.5", "training.steps=10"), "--resume")
    run = launcher.start(*changed, out=out)
    assert run.wait() == [2]
    assert run.output() == (
        f"error: {out}: the config differs from that of the run. Use --accept-changes to resume with:\n"
        "  training.steps: 8 → 10\n"
        "  training.lr: 0.001 → 0.002\n"
        "  training.ema: null → 0.5\n"
    )
    assert files_of(out) == files_of(uninterrupted)
    run = launcher.start(*changed, "--accept-changes", out=out)
    assert run.wait() == [0], run.output()
    assert run.output().splitlines()[:4] == [
        "resuming at step 8",
        "  changed: training.steps: 8 → 10",
        "  changed: training.lr: 0.001 → 0.002",
        "  changed: training.ema: null → 0.5",
    ]
    assert steps_of(out) == [9, 10]
    resumed = json.loads((out / "environment.json").read_text())["resumed"]
    assert [(each["step"], len(each["changes"])) for each in resumed] == [(8, 3)]


def test_a_model_of_another_shape_is_always_rejected(
    launcher: RunLauncher, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    run = launcher.start(*WORDS, *set_args("method.channels.instance=17"), "--resume", "--accept-changes", out=out)
    assert run.wait() == [2]
    assert run.output() == (
        f"error: {out}: the checkpoint does not match the config: 3 of 127 tensors differ in shape, for example "
        "embeddings.instance.classes.weight: (33, 64) → (18, 64). Start a new run in another --out\n"
    )
    assert files_of(out) == files_of(uninterrupted)


def test_data_with_other_classes_is_rejected(launcher: RunLauncher, tmp_path: Path) -> None:
    out = tmp_path / "run"
    names = GeneratedScenes.classes
    for name, classes in (
        ("original", names),
        ("renamed", [f"c{k}" for k in range(len(names))]),
        ("fewer", names[:-1]),
    ):
        write_folder(tmp_path / name, classes=classes)
    words = (*WORDS, *set_args("method.channels.semantic=23"))
    run = launcher.start(*words, "--data", str(tmp_path / "fewer"), out=out)
    assert run.wait() == [2]
    assert run.output() == (
        "error: method.channels.semantic: expected 22, the classes of 'fewer', got 23. Remove the setting\n"
    )
    run = launcher.start(*WORDS, *set_args("training.steps=2"), "--data", str(tmp_path / "original"), out=out)
    assert run.wait() == [0], run.output()
    (tmp_path / "original").rename(tmp_path / "moved")
    for name, found in (("renamed", "23 (c0, c1, c2, …)"), ("fewer", "22 (sky, forest, rock, …)")):
        (tmp_path / name).rename(tmp_path / "original")  # the config is the same
        words = (*WORDS, *set_args("training.steps=3"), "--data", str(tmp_path / "original"))
        run = launcher.start(*words, "--resume", "--accept-changes", out=out)
        assert run.wait() == [2]
        assert run.output() == (
            f"error: {out}: was trained on 23 classes (sky, forest, rock, …), but the data has {found}. "
            "Resume with the previous data\n"
        )
        (tmp_path / "original").rename(tmp_path / name)


def test_damaged_checkpoints_are_skipped_and_reported(
    launcher: RunLauncher, uninterrupted: Path, tmp_path: Path
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "loaded",)

    out = tmp_path / "run"
    words = (*WORDS, *set_args("saving.steps=1", "saving.keep_last=8"))
    assert launcher.start(*words, out=out).wait() == [0]
    folders = [out / "checkpoints" / f"step-{step:08d}" for step in range(1, 9)]
    files = [folder / "tensors.safetensors" for folder in folders]
    flipped = bytearray(files[7].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    files[7].write_bytes(flipped)
    size = files[6].stat().st_size
    os.truncate(files[6], size - 1)
    files[5].write_bytes(pickle.dumps(Bomb()))
    (folders[4] / "checkpoint.json").write_text('{"model": "vit"}\n')
    files[3].unlink()
    run = launcher.start(*words, "--resume", out=out)
    assert run.wait() == [0], run.output()
    fix = "Restore it, or use another checkpoint"
    assert run.output().splitlines()[:6] == [
        f"{files[7]}: is damaged: its checksum is not the one stored when it was written. {fix}",
        f"{files[6]}: is damaged: it has {size - 1} bytes, expected {size}. {fix}",
        f"{files[5]}: is a pickle, which could run code, so it is not read. Use another checkpoint",
        f"{folders[4]}/checkpoint.json: is not a checkpoint of c2fmae: it has no format version. {fix}",
        f"{files[3]}: is missing. {fix}",
        "resuming at step 3",
    ]
    assert not (tmp_path / "loaded").exists()
    assert_ends_as(uninterrupted, out)
    for file in files:
        file.unlink(missing_ok=True)
    run = launcher.start(*words, "--resume", out=out)
    assert run.wait() == [2]
    assert run.output().splitlines()[-1] == (
        f"error: {out}/checkpoints: no checkpoint is intact. Restore one, or start again in another --out"
    )


def test_too_many_broken_samples_over_all_ranks_stop_the_run(launcher: RunLauncher, tmp_path: Path) -> None:
    write_folder(tmp_path / "data")
    for key in range(0, 18, 3):
        os.truncate(tmp_path / f"data/rgb/{key:08d}.png", 200)
    words = (*WORDS, "--data", str(tmp_path / "data"), *set_args("data.workers=1"))
    run = launcher.start(*words, *set_args("data.max_broken=0.1"), out=tmp_path / "run", num_processes=2)
    assert run.wait() == [2, 2], run.output()
    for rank in range(2):  # neither rank has this many alone
        assert run.output(rank).splitlines()[-1] == (
            "error: data.max_broken: 4 of 32 samples are broken, more than the 10.00% that may be skipped. "
            "List them with `c2fmae data check`"
        )
    assert state_of(tmp_path / "run")["status"] == "failed"


@pytest.mark.parametrize("processes", [1, 2])
def test_the_death_of_a_data_worker_is_reported(launcher: RunLauncher, tmp_path: Path, processes: int) -> None:
    words = (*WORDS, *LONGER, *set_args("data.workers=2"))
    run = launcher.start(*words, out=tmp_path / "run", num_processes=processes)
    run.wait_for_step(2)
    last = run.pids[-1]
    worker = Path(f"/proc/{last}/task/{last}/children").read_text().split()[0]
    os.kill(int(worker), signal.SIGKILL)
    assert run.wait() == [1] * processes
    why = "a worker process died, most likely because memory ran out. Run again with fewer workers"
    assert run.output(processes - 1).splitlines()[-1] == f"error: {why}"
    if processes == 2:
        assert run.output().splitlines()[-1] == f"error: process 0 exits: process 1 failed: RunError: {why}"
    assert "Traceback" not in run.output()


KILLED_WORKER = """
import os, time
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

def kill_a_worker(self, *args, **options):
    os.kill(self._workers[0].pid, 9)
    time.sleep(60)

_MultiProcessingDataLoaderIter._reset = kill_a_worker
"""
FEW_FILES = """
import os, resource
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 12, most))
"""


@pytest.mark.parametrize(
    ("setup_code", "message"),
    [
        (KILLED_WORKER, "a worker process died, most likely because memory ran out. Run again with fewer workers"),
        (FEW_FILES, "more files are needed at once than the "),
        (AFTER_SPLIT.format(when="step == 1", what="made[-1].maps['rgb'].new_empty(1 << 60)"), "memory ran out. For "),
        (
            AFTER_SPLIT.format(when="step == 1", what="made[len(made)]"),
            "IndexError: list index out of range. This is a bug: ",
        ),
    ],
    ids=["a worker is killed while the loader is built", "few open files", "no memory", "a bug"],
)
def test_failures_of_the_environment_exit_with_code_1_and_a_sentence(
    launcher: RunLauncher, tmp_path: Path, setup_code: str, message: str
) -> None:
    words = (*WORDS, *set_args("data.workers=4"))
    run = launcher.start(*words, out=tmp_path / "run", setup_code=setup_code)
    assert run.wait() == [1], run.output()
    assert run.output().splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in run.output()
    if "This is a bug" in run.output():
        log = Path(run.output().split()[-1])
        assert "in run_step\n" in log.read_text()
        log.unlink()


def small_disk(folder: Path, size: str) -> None:
    try:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    small_disk(tmp_path, request.param)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("disk", ["10m"], indirect=True)
def test_too_little_disk_space_is_rejected_before_the_first_step(
    launcher: RunLauncher, uninterrupted: Path, disk: Path
) -> None:
    out = disk / "run"
    tensors = load_checkpoint(uninterrupted / "checkpoints/step-00000008").tensors
    needed = 3 * 3 * sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("model/"))
    free = shutil.disk_usage(disk).free
    why = (
        f"{out}: the checkpoints need {needed / 1e6:.1f} MB of disk space, but {free / 1e6:.1f} MB are free. "
        "Free disk space, choose another --out, or lower saving.keep_last"
    )
    run = launcher.start(*WORDS, out=out)
    assert run.wait() == [2]
    assert run.output() == f"error: {why}\n"
    run = launcher.start(*WORDS, out=out, num_processes=2)
    assert run.wait() == [2, 1]
    assert run.output() == f"error: {why}\n"
    assert run.output(1) == f"process 1 exits: process 0 failed: UserError: {why}\n"
    subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
    run = launcher.start(*WORDS, out=out)  # the rejected start left no files
    assert run.wait() == [0], run.output()
    assert_ends_as(uninterrupted, out)


@pytest.mark.parametrize("disk", ["24m"], indirect=True)
@pytest.mark.parametrize("left", [1 << 20, 0])
def test_a_run_on_a_full_disk_resumes_from_the_last_checkpoint(
    launcher: RunLauncher, uninterrupted: Path, disk: Path, left: int
) -> None:
    out, ballast = disk / "run", disk / "ballast"
    run = launcher.start(*WORDS, out=out, setup_code=SLOW)
    run.wait_for_step(5)
    wait_until(lambda: steps_of(out) == [4], run)
    with ballast.open("wb") as file, suppress(OSError):
        file.write(bytes(max(shutil.disk_usage(disk).free - left, 0)))
        file.flush()
    assert run.wait() == [2]
    last = run.output().splitlines()[-1]
    if left:
        assert last == (
            f"error: {out}/checkpoints: the checkpoint of step 8 could not be written: No space left on device. "
            "The last one, of step 4, is intact. Free disk space and run again with --resume"
        )
    else:  # any of the files may have been written last
        assert last.startswith(f"error: {out}/")
        assert "No space left on device" in last
    assert steps_of(out) == [4]
    ballast.unlink()
    run = launcher.start(*WORDS, "--resume", out=out)
    assert run.wait() == [0], run.output()
    assert_ends_as(uninterrupted, out)


@pytest.mark.parametrize("disk", ["40m"], indirect=True)
def test_a_read_only_disk_is_rejected(launcher: RunLauncher, uninterrupted: Path, disk: Path) -> None:
    shutil.copytree(uninterrupted, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for out in (disk / "run", disk / "new"):
        run = launcher.start(*WORDS, "--resume", out=out)
        assert run.wait() == [2]
        assert run.output() == f"error: {out}: cannot be used: Read-only file system. Choose another --out\n"


def test_initial_weights_are_loaded_again_after_a_kill_before_the_first_checkpoint(
    launcher: RunLauncher, uninterrupted: Path, tmp_path: Path
) -> None:
    words = (*WORDS, *set_args(f"init={uninterrupted}"))
    never = launcher.start(*words, out=tmp_path / "never")
    assert never.wait() == [0], never.output()
    run = launcher.start(*words, out=tmp_path / "killed", setup_code=SLOW)
    run.wait_for_step(2)
    run.send(signal.SIGKILL)
    run.wait()
    assert steps_of(run.out) == []
    again = launcher.start(*words, "--resume", out=run.out)
    assert again.wait() == [0], again.output()
    assert_ends_as(never.out, run.out)


def test_checkpoints_at_multiples_are_saved_and_remain(launcher: RunLauncher, tmp_path: Path) -> None:
    words = set_args("saving.steps=null", "saving.keep_every=3", "saving.keep_last=1")
    run = launcher.start(*WORDS, *words, out=tmp_path / "run")
    assert run.wait() == [0], run.output()
    assert steps_of(run.out) == [3, 6, 8]


def test_a_changed_number_of_samples_is_reported(launcher: RunLauncher, tmp_path: Path) -> None:
    run = launcher.start(*WORDS, out=tmp_path / "run")
    assert run.wait() == [0], run.output()
    checkpoint = load_checkpoint(run.out / "checkpoints" / "step-00000008")
    shutil.rmtree(run.out / "checkpoints")
    metadata = {**checkpoint.metadata, "samples": 50}
    save_checkpoint(run.out / "checkpoints", Checkpoint(8, checkpoint.tensors, metadata))
    again = launcher.start(*WORDS, "--resume", out=run.out)
    assert again.wait() == [2]
    assert "\n  samples of the data: 50 → 64" in again.output()


def test_a_file_with_the_name_of_a_checkpoint_is_skipped(
    launcher: RunLauncher, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    (out / "checkpoints" / "step-00000099").touch()
    again = launcher.start(*WORDS, "--resume", out=out)
    assert again.wait() == [0], again.output()
    assert "step-00000099: is not a checkpoint" in again.output()


def test_checkpoints_without_a_config_are_not_resumed(
    launcher: RunLauncher, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted / "checkpoints", out / "checkpoints")
    run = launcher.start(*WORDS, "--resume", out=out)
    assert run.wait() == [2]
    assert f"{out}: has checkpoints but no config.yaml. Restore it, or choose another --out" in run.output()


def test_a_report_that_cannot_be_written_does_not_fail_the_run(
    launcher: RunLauncher, uninterrupted: Path, tmp_path: Path
) -> None:
    run = launcher.start(*WORDS, out=tmp_path / "run", setup_code=SLOW)
    run.wait_for_step(1)
    (run.out / "figures").mkdir()
    (run.out / "figures" / "step-00000001.png").touch()
    assert run.wait() == [0], run.output()
    assert state_of(run.out) == {"status": "finished", "step": 8}
    assert "report.html: could not be written: " in run.output()
