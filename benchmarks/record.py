"""Store the output of a benchmark: `python -m benchmarks.record NAME -- COMMAND…`.

Writes records/DATE-NAME/, with the output of the command in log.txt, and the command, the commit and the machine in
record.json.
"""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from c2fmae.core.environment import collect_environment
from c2fmae.core.json_file import write_json

RECORDS = Path(__file__).parent / "records"


def record_command(name: str, command: list[str], records: Path = RECORDS) -> int:
    """Run a command, print and store its output, and return its exit code. After Ctrl-C, nothing is stored."""
    start, environment = datetime.now(UTC), collect_environment()
    folder = records / f"{start:%Y-%m-%d}-{name}"
    if folder.exists():
        sys.exit(f"{folder}: exists already. Choose another name")
    folder.mkdir(parents=True)
    values = {
        "command": command,
        "started": f"{start:%Y-%m-%dT%H:%M:%SZ}",
        "cores": len(os.sched_getaffinity(0)),
        **{key: environment[key] for key in ("c2fmae", "revision", "python", "torch", "cpu", "gpus", "variables")},
    }
    write_json(folder / "record.json", values)
    with (
        (folder / "log.txt").open("w", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                log.write(line)
        except KeyboardInterrupt:
            process.terminate()  # if the signal was not sent to it too
            shutil.rmtree(folder)
            print("interrupted. Nothing is stored", file=sys.stderr)
            return 130
    end = {
        "exit_code": process.returncode,
        "seconds": round((datetime.now(UTC) - start).total_seconds(), 1),
        "load_at_end": [round(load, 2) for load in os.getloadavg()],
    }
    write_json(folder / "record.json", values | end)
    return process.returncode


def main() -> None:
    """Record the command of the arguments."""
    if len(sys.argv) < 4 or sys.argv[2] != "--":
        sys.exit("usage: python -m benchmarks.record NAME -- COMMAND…")
    sys.exit(record_command(sys.argv[1], sys.argv[3:]))


if __name__ == "__main__":
    main()
