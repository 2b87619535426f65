"""Worker processes that do not start, or die."""

import re
import shutil
import sys
from multiprocessing import current_process
from pathlib import Path

from c2fmae.core.errors import RunError, UserError

_SHARED_MEMORY = Path("/dev/shm")
_MIN_SHARED_BYTES = 4 << 20  # more than the small tensors of a batch need

_UNGUARDED_EXIT_CODE = 64


def exit_if_unguarded() -> None:
    """Exit if this process is a worker that imports the main script, which lacks `if __name__ == '__main__':`.

    Call it before anything that the parent is doing too, such as locking a directory. The parent reports the error.
    """
    if getattr(current_process(), "_inheriting", False):  # as multiprocessing tests before it starts a process
        raise SystemExit(_UNGUARDED_EXIT_CODE)


def describe_shared_memory_shortage() -> str:
    """Return a sentence with the size of the shared memory, in which all prefetched batches must fit."""
    size = f" has {shutil.disk_usage(_SHARED_MEMORY).total >> 20:,} MiB and" if _SHARED_MEMORY.exists() else ""
    return (
        f"shared memory ran out: {_SHARED_MEMORY}{size} must hold the prefetched batches of all workers. Enlarge it "
        "(docker run --shm-size=8g), or lower data.workers or data.prefetch; for an evaluation, lower workers or "
        "batch_size"
    )


def check_shared_memory() -> None:
    """Raise a `RunError` if hardly any shared memory is left.

    Tensors are moved there by a thread of a worker: if that fails, their batch would never arrive.
    """
    if _SHARED_MEMORY.exists() and shutil.disk_usage(_SHARED_MEMORY).free < _MIN_SHARED_BYTES:
        raise RunError(describe_shared_memory_shortage())


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
        return RunError(describe_shared_memory_shortage())
    exit_code = re.search(r"exit code (\d+)", str(error))
    return worker_death_error(int(exit_code[1]) if exit_code else None)
