"""What the library says while it works.

Modules log with `logging.getLogger(__name__)`. A program that imports us decides for itself what it shows; the command
shows plain lines on stderr, so that stdout stays for results.
"""

import logging
import sys


def configure_logging(level: str = "INFO") -> None:
    """Show the project's log on stderr; calling it again changes the level."""
    log = logging.getLogger("c2fmae")
    log.setLevel(level)
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False
