import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import (
    RowWriter,
    RunDir,
    check_disk_space,
    config_differences,
    find_checkpoint,
    open_run_dir,
    read_rows,
    truncate_rows,
)

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
SETTINGS = st.recursive(
    PLAIN | st.text("abc") | st.lists(st.integers()),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=6,
)
TREES = st.dictionaries(st.text("abc", min_size=1, max_size=2), SETTINGS, max_size=4)


def lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(texts))
    return path


def test_a_run_has_its_folder_made_and_its_places_named(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "first"
    with open_run_dir(path) as run:
        assert list(path.iterdir()) == []
        assert not run.is_started
        run.write_text("config.yaml", "seed: 1\n")
        assert run.is_started
        assert run.config_path.read_text() == "seed: 1\n"
    places = [run.config_path, run.checkpoints, run.metrics, run.timing, run.figures, run.report]
    names = ["config.yaml", "checkpoints", "metrics.jsonl", "timing.jsonl", "pictures", "report.html"]
    assert places == [path / name for name in names]


def test_a_second_run_is_refused_until_the_first_is_over(tmp_path: Path) -> None:
    with open_run_dir(tmp_path), pytest.raises(UserError) as caught, open_run_dir(tmp_path):
        pass
    assert str(caught.value) == f"{tmp_path} is in use by another run. Wait for it, or give another --out"
    with open_run_dir(tmp_path):
        pass


@pytest.mark.once
def test_a_killed_run_lets_its_folder_go(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from c2fmae.core.run_dir import open_run_dir\n"
        "with open_run_dir(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        with process.stdout:
            assert process.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="is in use by another run"), open_run_dir(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    with open_run_dir(tmp_path):
        pass


def test_an_impossible_place_is_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "file", "")
    for path, why in [(file, "File exists"), (file / "run", "Not a directory"), (Path("/proc/run"), "No such file")]:
        with pytest.raises(UserError) as caught, open_run_dir(path):
            pass
        assert str(caught.value).startswith(f"{path}: cannot be used: {why}")
        assert str(caught.value).endswith(". Give another --out")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.once
def test_a_read_only_place_is_refused(read_only_disk: Path) -> None:
    for path in (read_only_disk, read_only_disk / "run"):
        with pytest.raises(UserError) as caught, open_run_dir(path):
            pass
        assert str(caught.value) == f"{path}: cannot be used: Read-only file system. Give another --out"


def test_an_error_of_the_run_itself_passes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="somewhere"), open_run_dir(tmp_path):
        raise FileNotFoundError("somewhere")


def test_the_state_is_noted_with_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path)
    assert run.read_state() is None
    monkeypatch.setattr("time.time", lambda: 1234.5678)
    run.write_state("running", step=0)
    run.write_state("failed", step=12, why="the loss is not finite")
    assert run.read_state() == {"status": "failed", "step": 12, "why": "the loss is not finite", "time": 1234.568}
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"), ("3", "it is no object")],
)
def test_a_damaged_state_is_named(text: str, why: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "state.json", text)
    with pytest.raises(UserError) as caught:
        RunDir(tmp_path).read_state()
    assert str(caught.value) == f"{path}: cannot be read: {why}. Remove it"


def test_a_row_is_a_line_that_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with RowWriter(path) as rows:
        rows.write({"step": 1, "loss": 0.1 + 0.2, "lr": 1e-05, "skipped": "why", "b": None, "a": True})
        assert path.read_text() == (
            '{"step": 1, "loss": 0.30000000000000004, "lr": 1e-05, "skipped": "why", "b": null, "a": true}\n'
        )
        rows.write({"step": 2, "loss": nan, "high": inf, "low": -inf})
    with RowWriter(path) as rows:
        rows.write({})
    assert path.read_text().splitlines()[1:] == ['{"step": 2, "loss": null, "high": null, "low": null}', "{}"]


@given(st.lists(st.dictionaries(st.text(), PLAIN | st.text()), max_size=5))
def test_rows_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, expected: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    path.unlink(missing_ok=True)
    with RowWriter(path) as rows:
        for row in expected:
            rows.write(row)
    assert read_rows(path) == expected


def test_rows_that_cannot_be_written_are_named() -> None:
    path = Path("/dev/full")
    says = "cannot be written: No space left on device. Mend that and run again with --resume"
    with RowWriter(path) as rows, pytest.raises(UserError) as caught:
        rows.write({"step": 1})
    assert str(caught.value) == f"{path}: {says}"
    with pytest.raises(UserError) as caught:
        RowWriter(Path("/proc/none/metrics.jsonl"))
    assert str(caught.value) == (
        "/proc/none/metrics.jsonl: cannot be written: No such file or directory. Mend that and run again with --resume"
    )


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 9), st.data())
def test_a_cut_drops_later_rows_and_a_torn_one_and_leaves_the_others_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], after: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    rows = [f'{{"step":{step} , "loss": 1.0}}\n' for step in steps]
    torn = '{"step": 0, "loss": 1.0}'[: data.draw(st.integers(0, 24))]
    lines(path, *rows, torn)
    assert read_rows(path) == [{"step": step, "loss": 1.0} for step in steps]
    truncate_rows(path, after_step=after)
    assert path.read_text() == "".join(row for row, step in zip(rows, steps, strict=True) if step <= after)


def test_rows_without_a_step_stay_and_a_missing_file_is_fine(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", '{"note": 1}\n', '{"step": 5}\n')
    truncate_rows(path, after_step=4)
    assert path.read_text() == '{"note": 1}\n'
    truncate_rows(tmp_path / "none.jsonl", after_step=4)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bad", ['{"step": \n', "[1]\n", "\n", '{"a": 1} {"b": 1}\n', "\0\0\0\n"])
def test_a_line_that_is_no_row_is_named_by_number(bad: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", '{"step": 1}\n', bad, '{"step": 2}\n')
    for act in (read_rows, lambda path: truncate_rows(path, after_step=9)):
        with pytest.raises(UserError) as caught:
            act(path)
        assert str(caught.value) == f"{path}: line 2 is not a JSON object. Mend or remove it"
    lines(path, '{"step": 1}\n', bad)
    assert read_rows(path) == [{"step": 1}]


def test_rows_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory"


def test_too_little_room_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 1_200_000_000))
    path = tmp_path / "run"
    check_disk_space(path, num_bytes=1_200_000_000)
    with pytest.raises(UserError) as caught:
        check_disk_space(path, num_bytes=3_400_000_000)
    assert str(caught.value) == (
        f"{path}: 3.4 GB are needed for checkpoints, 1.2 GB are free. Free some room, give another --out, or lower"
        " saving.keep_last"
    )


def test_room_is_looked_up_where_the_folder_will_be(tmp_path: Path) -> None:
    check_disk_space(tmp_path / "not" / "yet" / "there", num_bytes=1)
    with pytest.raises(UserError, match=r"^run: 1000000000.0 GB are needed"):
        check_disk_space(Path("run"), num_bytes=10**18)


def test_a_run_a_folder_of_checkpoints_and_a_checkpoint_mean_a_checkpoint(tmp_path: Path) -> None:
    for folder, steps in {"checkpoints": (5, 10), "best": (3, 7)}.items():
        for step in steps:
            save_checkpoint(tmp_path / folder, Checkpoint(step, {"model/a": torch.ones(1)}, {}))
    (tmp_path / "config.yaml").touch()
    assert [find_checkpoint(tmp_path, step).step for step in (None, 5)] == [10, 5]
    assert [find_checkpoint(tmp_path / "best", step).step for step in (None, 3)] == [7, 3]
    assert find_checkpoint(tmp_path / "best" / "step-00000003").step == 3
    (tmp_path / "best" / "step-00000007" / "tensors.safetensors").write_bytes(b"torn")
    assert find_checkpoint(tmp_path / "best").step == 3
    with pytest.raises(UserError, match="step-00000005: is missing. Restore it, or use another checkpoint"):
        find_checkpoint(tmp_path / "best", 5)


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError) as caught:
        find_checkpoint(tmp_path)
    assert str(caught.value) == f"{tmp_path}: has no intact checkpoint"


def test_differences_are_listed_by_path_in_the_order_of_their_appearance() -> None:
    old = {"method": "mae", "training": {"lr": 0.001, "steps": 10, "betas": (0.9, 0.95)}, "ema": None, "gone": {"a": 1}}
    new = {"seed": 1, "training": {"steps": 10, "lr": 0.002, "betas": [0.9, 0.95], "bf16": True}, "method": "c2fmae"}
    assert config_differences(old, new) == [
        "method: mae → c2fmae",
        "training.lr: 0.001 → 0.002",
        "ema: null → (not set)",
        "gone.a: 1 → (not set)",
        "seed: (not set) → 1",
        "training.bf16: (not set) → true",
    ]
    assert config_differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ['a: [1, {"b": 2}] → [1, {"b": 3}]']


@given(TREES, TREES)
def test_equal_settings_have_no_differences_and_others_have_the_same_both_ways(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert config_differences(one, json.loads(json.dumps(one))) == []
    there, back = config_differences(one, other), config_differences(other, one)
    turned = [f"{key}: {after} → {before}" for key, before, after in map(parts, there)]
    assert sorted(turned) == sorted(back)


def parts(line: str) -> tuple[str, str, str]:
    key, _, values = line.partition(": ")
    before, _, after = values.partition(" → ")
    return key, before, after
