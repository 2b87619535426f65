"""Signals that stop a run: recorded when they arrive, handled between two steps, or two batches of a test."""

import signal
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

EXIT_CODE_SAVED = 75
"""Exit code of a run that saved after SIGTERM or SIGUSR1 (EX_TEMPFAIL): a scheduler should start it again."""


class StopRequest:
    """A request to stop a run: false until a signal arrives, then true."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, otherwise `EXIT_CODE_SAVED`."""
        return 130 if self.signal is signal.SIGINT else EXIT_CODE_SAVED


class TestStopped(Exception):  # noqa: N818 - not an error
    """A test was stopped by a signal, on all ranks."""

    __test__: ClassVar[bool] = False  # not a test of pytest


_active: StopRequest | None = None


def get_stop_request() -> StopRequest | None:
    """Return the request that `catch_signals` records signals in; None if it is not in use."""
    return _active


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Record SIGTERM, SIGUSR1 and the first Ctrl-C. The second Ctrl-C raises `KeyboardInterrupt`."""
    global _active
    stop = StopRequest()

    def handle_signal(number: int, frame: types.FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and stop.signal is signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = signal.Signals(number)

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals are delivered to the main thread only
        return
    previous_handlers = {
        number: signal.signal(number, handle_signal) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    }
    _active = stop
    try:
        yield stop
    finally:
        _active = None
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
