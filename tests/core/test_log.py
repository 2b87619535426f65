import logging
import subprocess
import sys

SCRIPT = """
import logging
from c2fmae.core.log import configure_logging
logging.getLogger("c2fmae.somewhere").warning("before")
configure_logging()
configure_logging()
logging.getLogger("c2fmae.somewhere").info("after")
logging.getLogger("c2fmae.somewhere").debug("detail")
configure_logging("DEBUG")
logging.getLogger("c2fmae.somewhere").debug("more detail")
print("a result")
"""


def test_the_log_is_printed_once_on_stderr_after_configuration() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == "a result\n"
    assert done.stderr == "before\nafter\nmore detail\n"  # Python itself shows warnings that nobody handles


def test_importing_the_library_does_not_configure_logging() -> None:
    import c2fmae.views.masks  # noqa: F401

    assert not logging.getLogger("c2fmae").handlers
    assert logging.getLogger("c2fmae").propagate
