"""The measurement of a GPU, rehearsed on a CPU, and records of measurements."""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_run import STAGES, Bench
from benchmarks.record import record_command


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Directories of results and of data, which stages share."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        yield tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("work")


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", ["ceilings", "parity", "eager", "loop", "pack", "run", "ddp", "data", "profile"])
def test_a_stage_of_the_gpu_measurement_runs_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path], stage: str
) -> None:
    out, work = folders
    if stage in ("run", "data"):
        STAGES["pack"].run(Bench(out, work, is_cpu=True, stage="pack"))  # nothing if it is written
    monkeypatch.setenv("C2FMAE_CACHE", str(work / "cache"))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    STAGES[stage].run(Bench(out, work, is_cpu=True, stage=stage))
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    values = {row["name"]: row["value"] for row in rows if row["stage"] == stage}
    assert values
    if stage == "parity":
        assert values["masks that differ from the CPU's"] == 0
    if stage == "ddp":
        losses = [value for name, value in values.items() if name.endswith("loss")]
        assert len(losses) == 5
        assert losses == pytest.approx([losses[0]] * 5, rel=1e-2)  # in bfloat16


@pytest.mark.unchecked
def test_the_output_of_a_benchmark_is_stored_with_its_command_and_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", "print('12 ms'); raise SystemExit(3)"]
    assert record_command("masks", command, tmp_path) == 3
    assert capsys.readouterr().out == "12 ms\n"
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith("-masks")
    assert (folder / "log.txt").read_text() == "12 ms\n"
    record = json.loads((folder / "record.json").read_text())
    assert record["command"] == command
    assert record["exit_code"] == 3
    assert {"revision", "cpu", "gpus", "torch", "cores", "load_at_end"} <= record.keys()
