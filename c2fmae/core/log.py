"""Logging of the command.

Modules log with `logging.getLogger(__name__)`, and a program that imports the library configures logging itself. The
command prints plain lines on stderr: stdout is for results.
"""

import logging
import os
import sys

from c2fmae.core.text import indent_message


def configure_logging(level: str = "INFO") -> None:
    """Print the log of the library on stderr. A second call changes the level."""
    log = logging.getLogger("c2fmae")
    log.setLevel(level)
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_MessageFormatter())
        log.addHandler(handler)
        log.propagate = False


class _MessageFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return indent_message(super().format(record))


def is_main_process() -> bool:
    """Return whether this is the process that prints: the only one, or rank 0 of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"
