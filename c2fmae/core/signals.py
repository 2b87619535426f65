"""Signals that ask a run to end: noted when they come, acted upon between two steps."""

import signal
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE_SAVED = 75
"""Exit code of a run that saved because it was told to end: "try again" (EX_TEMPFAIL), for schedulers."""


class StopRequest:
    """Whether somebody has asked the run to end, and how."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code that tells of it."""
        return 130 if self.signal is signal.SIGINT else EXIT_CODE_SAVED


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Note SIGTERM, SIGUSR1 and the first Ctrl-C; the second Ctrl-C ends at once."""
    stop = StopRequest()

    def handle_signal(number: int, frame: types.FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and stop.signal is signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = signal.Signals(number)

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only a main thread hears signals
        return
    previous_handlers = {
        number: signal.signal(number, handle_signal) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
