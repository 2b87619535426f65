"""The measurement of a GPU, rehearsed on a CPU, and records of measurements."""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu_run import __main__ as gpu_run
from benchmarks.gpu_run.__main__ import STAGES, main
from benchmarks.record import record_command


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Directories of results and of data, which stages share."""
    torch._dynamo.reset()
    num_threads = torch.get_num_threads()
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        yield tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("work")
    torch.set_num_threads(num_threads)


def replace_processes(monkeypatch: pytest.MonkeyPatch, run: Callable[[list[str]], int]) -> None:
    """Let stages run by a function of the command, which returns the exit code, instead of processes."""

    def run_command(command: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(returncode=run(command))

    replacement = SimpleNamespace(run=run_command, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(gpu_run, "subprocess", replacement)


def run_here(command: list[str]) -> int:
    main(command[3:])
    return 0


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", [pytest.param(name, marks=[pytest.mark.slow] * (name == "sweep")) for name in STAGES])
def test_a_stage_of_the_gpu_measurement_runs_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path], stage: str
) -> None:
    out, work = folders
    monkeypatch.setenv("C2FMAE_CACHE", str(work / "cache"))
    monkeypatch.setattr(torch, "compile", torch.compile)  # is restored after `main` has changed it
    replace_processes(monkeypatch, run_here)
    needed = ["pack"] if stage in ("run", "run-off", "data") else []  # which does nothing if it is written
    main(["--cpu", "--out", str(out), "--work", str(work), "--only", *needed, stage])
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    values = {row["name"]: row["value"] for row in rows if row["stage"] == stage}
    assert values
    assert all(map(math.isfinite, values.values()))
    if stage == "parity":
        assert values["masks that differ from the CPU's"] == 0
    if stage == "ddp":
        losses = [value for name, value in values.items() if name.endswith("loss")]
        assert len(losses) == 5
        assert losses == pytest.approx([losses[0]] * 5, rel=1e-2)  # in bfloat16


def test_a_failed_stage_of_the_gpu_measurement_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_processes(monkeypatch, lambda _: 9)
    with pytest.raises(SystemExit, match="failed: eager, blocks"):
        main(["--cpu", "--out", str(tmp_path), "--only", "eager", "blocks"])
    assert capsys.readouterr().out.split("\n\n")[1].split() == (
        ["eager", "eager:", "FAILED", "nan", "9", "blocks", "blocks:", "FAILED", "nan", "9"]
    )


@pytest.mark.unchecked
def test_the_output_of_a_benchmark_is_stored_with_its_command_and_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", "import sys; print('12 ms', file=sys.stderr); raise SystemExit(3)"]
    assert record_command("masks", command, tmp_path) == 3
    assert capsys.readouterr().out == "12 ms\n"
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith("-masks")
    assert (folder / "log.txt").read_text() == "12 ms\n"
    record = json.loads((folder / "record.json").read_text())
    assert record["command"] == command
    assert record["exit_code"] == 3
    assert {"revision", "cpu", "gpus", "torch", "cores", "load_at_end"} <= record.keys()
    with pytest.raises(SystemExit, match="-masks: exists already. Choose another name"):
        record_command("masks", command, tmp_path)


@pytest.mark.unchecked
def test_nothing_is_stored_of_an_interrupted_benchmark(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    interrupt = "import os, signal, sys; print('12 ms', file=sys.stderr); os.kill(os.getppid(), signal.SIGINT)"
    command = [sys.executable, "-c", f"{interrupt}; import time; time.sleep(1)"]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores the signal
    try:
        assert record_command("masks", command, tmp_path) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert list(tmp_path.iterdir()) == []
    assert "interrupted. Nothing is stored\n" in capfd.readouterr().err
