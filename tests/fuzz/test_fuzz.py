"""Damaged files are read or rejected with a `UserError`: no other error, and no input that is read for ever."""

import logging
import signal
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import FrameType

import pytest

from c2fmae.core.errors import UserError
from tests.fuzz.readers import READERS, Read

SECONDS_PER_INPUT = 60


class HangError(BaseException):
    """An input was read for too long."""


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Raise a `HangError` where the alarm interrupts."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise HangError

    previous = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def collect_failures(name: str, read: Read, indices: range) -> dict[str, str]:
    """Return the traceback of the first input of each failure, by the place where it is raised."""
    failures: dict[str, str] = {}
    for index in indices:
        signal.alarm(SECONDS_PER_INPUT)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(Random(f"{name} {index}"))
        except UserError:
            pass
        except (Exception, HangError) as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "/c2fmae/" in frame.filename and "/tests/" not in frame.filename]
            last = (ours or frames)[-1]
            place = f"{type(error).__name__} {Path(last.filename).name}:{last.lineno}"
            failures.setdefault(place, f"input {index} of {name}\n{''.join(traceback.format_exception(error))}")
        finally:
            signal.alarm(0)
    return failures


def check_reader(name: str, folder: Path, num_inputs: int) -> None:
    logging.getLogger("c2fmae").setLevel(logging.CRITICAL)
    read = READERS[name][-1](folder)
    failures = collect_failures(name, read, range(num_inputs))
    assert not failures, "\n".join([f"{len(failures)} failures: {', '.join(failures)}", *failures.values()])


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_rejected(name: str, tmp_path: Path) -> None:
    check_reader(name, tmp_path, READERS[name][0])


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_read_or_rejected(name: str, tmp_path: Path) -> None:
    check_reader(name, tmp_path, READERS[name][1])


def test_the_long_test_has_many_inputs() -> None:
    assert sum(count for _, count, _ in READERS.values()) >= 100_000
