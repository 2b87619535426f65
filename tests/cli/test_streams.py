import io
import logging
import subprocess
import sys

import pytest
from c2fmae_cli.streams import EscapedStream
from rich.console import Console

from c2fmae.core.errors import UserError
from c2fmae.core.log import configure_logging
from c2fmae.core.progress import ProgressDisplay
from c2fmae.data.problems import Problem
from c2fmae.report import Table, table_to_lines

NAME = "a\x1b]0;title\x07\r\u202egnp\nnext: rm"
"""A file name that sets the title of the window, overwrites its line, is reversed and begins a line of its own."""
SHOWN = "a\\x1b]0;title\\x07\\r\\u202egnp"


@pytest.mark.unchecked
def test_names_in_errors_do_not_command_the_terminal() -> None:
    command = [sys.executable, "-m", "c2fmae_cli", "recipes", "show", f"{NAME}.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {SHOWN}\n  next: rm.yaml: ")


def test_printed_text_is_escaped_while_rich_writes_colours() -> None:
    raw = io.StringIO()
    stream = EscapedStream(raw)
    print(f"wrote {NAME}", file=stream)
    assert raw.getvalue() == f"wrote {SHOWN}\nnext: rm\n"
    stream.write("\r 50%")  # as progress bars of other packages
    assert raw.getvalue().endswith("next: rm\n\r 50%")
    assert not stream.isatty()
    console = Console(file=stream, force_terminal=True, color_system="standard")  # type: ignore[arg-type]
    console.print("bold", style="bold")
    assert raw.getvalue().endswith("\x1b[1mbold\x1b[0m\n")


def test_names_in_logs_and_lines_of_progress_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("c2fmae")
    handlers, propagates = log.handlers, log.propagate
    log.handlers = []
    try:
        configure_logging()
        logging.getLogger("c2fmae.test").warning("%s: skipped\n  a list", NAME)
    finally:
        log.handlers, log.propagate = handlers, propagates
    assert capsys.readouterr().err == f"{SHOWN}\n  next: rm: skipped\n  a list\n"
    raw = io.StringIO()
    with ProgressDisplay(total_steps=1, console=Console(file=raw)) as display:
        display.print_line("\x1b[2J")
    assert "\\x1b[2J" in raw.getvalue()


def test_names_in_tables_and_problems_stay_on_one_line() -> None:
    one_line = f"{SHOWN}\\nnext: rm"
    assert table_to_lines(Table("", ("name", "images"), [(NAME, 3)]))[1] == f"{one_line}  3"
    assert Problem(NAME, f"{NAME}: has no label").text == f"{one_line}: has no label"
    assert str(UserError(NAME)) == NAME  # the library returns names as they are
