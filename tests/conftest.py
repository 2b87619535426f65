"""One deterministic profile for all property tests: the same examples on every machine.

One thread each, and for the processes that tests start, unless OMP_NUM_THREADS says otherwise: tests run side by
side, and small models are slower on two threads that wait for each other.
"""

import logging
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("deterministic")

torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def unconfigured_logging() -> Iterator[None]:
    """Undo the logging of a command that ran in this process: its stream is closed after the test."""
    yield
    log = logging.getLogger("c2fmae")
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.NOTSET)
