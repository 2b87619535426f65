"""Settings of all tests: the same examples of property tests on every machine, and one thread for each process.

OMP_NUM_THREADS changes the number of threads, also of the processes that tests start. The default is one because tests
run in parallel, and small models are slower with two threads.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the examples of docstrings and pages run without shape checks, as users run them."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            item.add_marker(pytest.mark.unchecked)
