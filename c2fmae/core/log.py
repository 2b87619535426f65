"""What the library says while it works: plain lines on stderr, so that stdout stays for results."""

import logging
import sys


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module: `get_logger(__name__)`."""
    return logging.getLogger(name)


def show_log(level: str = "INFO") -> None:
    """Show the project's log on stderr; the command calls this, a program that imports us decides for itself."""
    root = logging.getLogger("c2fmae")
    root.setLevel(level)
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        root.addHandler(handler)
        root.propagate = False
