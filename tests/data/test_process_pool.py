import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing import active_children
from pathlib import Path

import pytest

from c2fmae.core.errors import RunError, UserError
from c2fmae.core.yaml_file import read_yaml
from c2fmae.data.process_pool import choose_num_workers, run_in_processes


def test_one_worker_runs_in_the_calling_process() -> None:
    assert list(run_in_processes(range, [2, 0, 3], 1)) == [0, 1, 0, 1, 2]
    assert list(run_in_processes(lambda _: [os.getpid()], [None], 4)) == [os.getpid()]
    assert list(run_in_processes(range, [], 2)) == []


@pytest.mark.unchecked
def test_processes_yield_the_same_results_in_any_order() -> None:
    assert sorted(run_in_processes(range, [2, 0, 3, 1], 2)) == [0, 0, 0, 1, 1, 2]


@pytest.mark.unchecked
def test_closing_ends_all_processes() -> None:
    results = run_in_processes(range, [10**6, 10**6], 2)
    assert next(results) == 0
    assert len(active_children()) == 2
    results.close()
    assert not active_children()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("work", "task", "error_type", "message"),
    [
        (os._exit, 1, RunError, "a worker process died, most likely because memory ran out. Run again with fewer"),
        (read_yaml, Path("none.yaml"), UserError, "none.yaml: cannot be read: No such file or directory"),
        (iter, 5, RuntimeError, "in a worker process:\nTraceback .*TypeError: 'int' object is not iterable"),
    ],
    ids=["dies", "user error", "fails"],
)
def test_a_failing_worker_ends_all_others(
    work: Callable[[object], Iterable[object]], task: object, error_type: type[Exception], message: str
) -> None:
    start = time.monotonic()
    slow = functools.partial(_work_or_sleep, work)
    with pytest.raises(error_type, match=f"(?s)^{message}"):
        list(run_in_processes(slow, [task, None], 2))
    assert time.monotonic() - start < 60  # does not wait for the sleeping worker


SCRIPT = """
import os, sys
from multiprocessing import current_process
from pathlib import Path

from c2fmae.data import open_scenes
from c2fmae.data.pack import PackConfig, pack_scenes

{when_imported}
scenes = open_scenes("generated", size=32, length=20_000)  # whose order is 160 kB, more than a pipe holds
try:
    pack_scenes(scenes, Path(sys.argv[0] + ".pack"), PackConfig(shard_size=10_000), workers=2)
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("when_imported", "message"),
    [
        (
            "if hasattr(current_process(), '_inheriting'): os._exit(1)",
            "RunError: a worker process died, most likely because memory ran out. Run again with fewer workers",
        ),
        (
            "",
            "UserError: {script}: starts worker processes when it is imported, and each of them imports it. Put its "
            "statements below `if __name__ == '__main__':`, or use no workers",
        ),
    ],
    ids=["a worker dies while it starts", "the script has no guard"],
)
def test_workers_that_do_not_start_are_an_error(tmp_path: Path, when_imported: str, message: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(when_imported=when_imported))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == (message.format(script=script) + "\n", "")


def _work_or_sleep(work: Callable[[object], Iterable[object]], task: object) -> Iterable[object]:
    if task is None:
        time.sleep(600)
    return work(task)


def test_the_number_of_workers_follows_the_request_then_the_work_and_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert choose_num_workers(9, 1) == 9
    assert [choose_num_workers(None, count) for count in (0, 1999, 2000, 5000, 10**9)] == [1, 1, 2, 3, 4]
