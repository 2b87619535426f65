import errno
import os
import resource

import numpy as np
import pytest
import torch

from c2fmae.core.errors import RunError, UserError
from c2fmae.core.failures import convert_failure, describe_failure

MEMORY = "memory ran out. For training, lower training.micro_batch, data.workers or data.prefetch; for an evaluation, "


def open_files_error() -> OSError:
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE), "image.png")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), MEMORY),
        (RuntimeError("std::bad_alloc"), MEMORY),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), MEMORY),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of"),
            "the GPU ran out of memory (2.50 GiB more are needed). For training, lower training.micro_batch; for an ",
        ),
        (RuntimeError("CUDA error: out of memory\nCompile with"), "the GPU ran out of memory. For training, lower"),
        (RuntimeError("can't start new thread"), "no further thread can be started. Raise the limit with `ulimit -u`"),
        (open_files_error(), "more files are needed at once than the "),
        (RuntimeError("received 0 items of ancdata"), "more files are needed at once than the "),
        (
            RuntimeError("unable to write to file </torch_7_2_0>: No space left on device (28)"),
            "shared memory ran out: /dev/shm",
        ),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "), "a worker process died, most likely"),
        (
            RuntimeError(
                "DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that dataloader's "
                "workers are out of shared memory. "
            ),
            "shared memory ran out",
        ),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a/b"),
            "a/b: Permission denied. Free disk space or fix permissions, then run again",
        ),
    ],
)
def test_failures_of_the_environment_name_what_to_change(error: Exception, message: str) -> None:
    assert (describe_failure(error) or "").startswith(message)
    assert isinstance(convert_failure(error), RunError)


def test_real_failures_are_recognised() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 60, np.uint8)
    for caught in (of_torch, of_numpy):
        assert (describe_failure(caught.value) or "").startswith(MEMORY)


def test_a_lack_of_open_files_is_found_in_the_cause_of_the_error_of_a_reader() -> None:
    error = UserError("image.png: cannot be read")
    error.__cause__ = open_files_error()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert describe_failure(error) == (
        f"more files are needed at once than the {limit} that a process may open. Raise the limit with `ulimit -n "
        "4096`, or use fewer workers"
    )


def test_other_errors_are_not_failures_of_the_environment() -> None:
    missing = UserError("image.png: cannot be read")
    missing.__cause__ = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "image.png")
    bug = KeyError("a")
    bug.__context__ = missing.__cause__
    for error in (missing, bug, ValueError("memory"), RunError("the loss is not finite")):
        assert describe_failure(error) is None
        assert convert_failure(error) is error
