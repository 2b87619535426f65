"""Worker processes that do not start, or die."""

import re
import sys
from multiprocessing import current_process

from c2fmae.core.errors import RunError, UserError

SHARED_MEMORY_RAN_OUT = (
    "shared memory ran out. Enlarge /dev/shm (docker run --shm-size=8g), or run again with fewer workers"
)

_UNGUARDED_EXIT_CODE = 64


def exit_if_unguarded() -> None:
    """Exit if this process is a worker that imports the main script, which lacks `if __name__ == '__main__':`.

    Call it before anything that the parent is doing too, such as locking a directory. The parent reports the error.
    """
    if getattr(current_process(), "_inheriting", False):  # as multiprocessing tests before it starts a process
        raise SystemExit(_UNGUARDED_EXIT_CODE)


def worker_death_error(exit_code: int | None) -> UserError | RunError:
    """Return the error for the death of a worker with this exit code; None if it is unknown."""
    if exit_code == _UNGUARDED_EXIT_CODE:
        script = getattr(sys.modules["__main__"], "__file__", "the script")
        return UserError(
            f"{script}: starts worker processes when it is imported, and each of them imports it. Put its statements "
            "below `if __name__ == '__main__':`, or use no workers"
        )
    return RunError("a worker process died, most likely because memory ran out. Run again with fewer workers")


def loader_worker_death_error(error: BaseException) -> UserError | RunError | None:
    """Return the error for a `RuntimeError` of torch's `DataLoader` that reports the death of a worker, else None."""
    if not isinstance(error, RuntimeError) or not str(error).startswith("DataLoader worker"):
        return None
    if "shared memory" in str(error):
        return RunError(SHARED_MEMORY_RAN_OUT)
    exit_code = re.search(r"exit code (\d+)", str(error))
    return worker_death_error(int(exit_code[1]) if exit_code else None)
