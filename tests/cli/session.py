"""Several commands in one process of their own, since most of the time of each is the import of torch."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_SCRIPT = """
import shlex, sys
import c2fmae_cli
for line in sys.stdin:
    print("$", line, end="", flush=True)
    sys.argv = ["c2fmae", *shlex.split(line)]
    try:
        c2fmae_cli.main()
    except SystemExit as end:
        print("->", end.code or 0, flush=True)
"""


class Outcome(NamedTuple):
    """What one command printed to stdout, and its exit code."""

    exit_code: int
    lines: list[str]

    @property
    def text(self) -> str:
        """The lines, each with a newline."""
        return "".join(f"{line}\n" for line in self.lines)


def run_commands(*lines: str, cwd: Path) -> tuple[list[Outcome], str]:
    """Run commands, without their first word `c2fmae`; return their outcomes, and the stderr of all."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
        timeout=120,
    )
    outcomes = []
    for part in ("\n" + done.stdout).split("\n$ ")[1:]:
        *printed, end = part.rstrip("\n").split("\n")[1:]
        outcomes.append(Outcome(int(end.removeprefix("-> ")), printed))
    return outcomes, done.stderr
