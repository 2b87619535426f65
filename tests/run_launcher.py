"""Runs in processes of their own, forked from a server that has imported everything, so that they start quickly.

A forked process runs the command with its arguments, and ends with its exit code and messages.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

TIMEOUT = 180.0  # seconds; test machines are busy


@dataclass(frozen=True)
class LaunchedRun:
    """The processes of one run."""

    launcher: "RunLauncher"
    out: Path
    pids: tuple[int, ...]
    logs: tuple[Path, ...]

    def exit_codes(self) -> list[int | None]:
        """Return the exit codes: minus the signal number for killed processes, None for running ones."""
        return [self.launcher.poll(pid) for pid in self.pids]

    def wait(self, timeout: float = TIMEOUT) -> list[int]:
        """Wait for all processes and return their exit codes."""
        wait_until(lambda: None not in self.exit_codes(), self, timeout)
        return [code for code in self.exit_codes() if code is not None]

    def wait_for_step(self, step: int) -> None:
        """Wait until the row of a step has been written."""
        wait_until(lambda: read_last_step(self.out) >= step, self, may_have_ended=False)

    def send(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to the process group, as schedulers and terminals do."""
        with suppress(ProcessLookupError):
            if rank is None:
                os.killpg(self.pids[0], number)
            else:
                os.kill(self.pids[rank], number)

    def find_children(self, rank: int = 0) -> list[int]:
        """Return the processes that a process has started and that are running."""
        try:
            text = Path(f"/proc/{self.pids[rank]}/task/{self.pids[rank]}/children").read_text(encoding="ascii")
        except OSError:  # it has ended
            return []
        return [int(word) for word in text.split()]

    def output(self, rank: int = 0) -> str:
        """Return the output of a process on both streams."""
        return self.logs[rank].read_text(encoding="utf-8")


class RunLauncher:
    """A launcher of runs, which kills those that are left at its end."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir, self._count = log_dir, 0
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._codes: dict[int, int | None] = {}
        self._groups: list[int] = []

    def __enter__(self) -> "RunLauncher":
        return self

    def __exit__(self, *_: object) -> None:
        for group in self._groups:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        self._server.communicate(timeout=TIMEOUT)

    def start(
        self,
        *args: str,
        out: Path,
        command: tuple[str, ...] = ("pretrain",),
        out_option: tuple[str, ...] = ("--out",),
        num_processes: int = 1,
        setup_code: str = "",
        env: Mapping[str, str] | None = None,
    ) -> LaunchedRun:
        """Start a command (`c2fmae pretrain` by default); `setup_code` runs in each process before it."""
        pids, logs = list[int](), list[Path]()
        port = find_free_port()
        for rank in range(num_processes):
            rank_env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
            rank_env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            self._count += 1
            logs.append(self._log_dir / f"{self._count}.log")
            request = {
                "words": [*command, *args, *out_option, str(out)],
                "environ": dict(env or {}) | (rank_env if num_processes > 1 else {}),
                "log": str(logs[-1]),
                "group": pids[0] if pids else 0,
                "before": setup_code,
            }
            pids.append(self._request(request))
            self._codes[pids[-1]] = None
        self._groups.append(pids[0])
        return LaunchedRun(self, out, tuple(pids), tuple(logs))

    def poll(self, pid: int) -> int | None:
        """Return the exit code of a process; None while it is running."""
        if self._codes[pid] is None:
            self._codes[pid] = self._request({"poll": pid})
        return self._codes[pid]

    def _request(self, request: Mapping[str, Any]) -> Any:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def wait_until(
    condition: Callable[[], bool], run: LaunchedRun, timeout: float = TIMEOUT, *, may_have_ended: bool = True
) -> None:
    """Wait until a condition is true. Unless `may_have_ended`, the end of the run before is an error."""
    end = time.monotonic() + timeout
    while not condition():
        if not may_have_ended and None not in run.exit_codes() and not condition():
            raise AssertionError(f"ended with {run.exit_codes()}:\n{run.output()}")
        if time.monotonic() > end:
            raise AssertionError(f"timeout after {timeout} s:\n{run.output()}")
        time.sleep(0.002)


def read_metric_rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics written so far."""
    try:
        text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def read_last_step(out: Path) -> int:
    """Return the last step in the metrics."""
    return max((row["step"] for row in read_metric_rows(out)), default=0)


def set_args(*overrides: str) -> list[str]:
    """Return command-line arguments that change settings."""
    return [word for text in overrides for word in ("--set", text)]


def find_free_port() -> int:
    """Return an unused port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def serve_forks() -> dict[str, Any]:
    """Serve requests; return only in a forked process, with its request."""
    for line in iter(sys.stdin.readline, ""):
        request: dict[str, Any] = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        pid = os.fork()
        if not pid:
            return request
        with suppress(PermissionError):
            os.setpgid(pid, request["group"] or pid)
        print(pid, flush=True)
    raise SystemExit


def apply_request(request: Mapping[str, Any]) -> None:
    """Set the process group, streams, environment and arguments of this process, and run its setup code."""
    os.setpgid(0, request["group"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream, descriptor in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(stream, descriptor)
    os.environ |= request["environ"]
    sys.argv = ["c2fmae", *request["words"]]
    exec(compile(request["before"], "before", "exec"), {})


def run_command() -> int:
    """Run the command and return its exit code, as Python would."""
    try:
        import_module("c2fmae_cli").main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    for name in ("c2fmae.measure", "c2fmae.recipes", "timm", "torch.distributed"):
        import_module(name)
    apply_request(serve_forks())
    code = run_command()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)  # a regular shutdown of a forked interpreter takes seconds
