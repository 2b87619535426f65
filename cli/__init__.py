"""The command `c2fmae`: it translates arguments into configs and calls, and errors into one message.

Slow packages such as torch are imported inside the command that needs them, so that `--help` is fast.
"""

import errno
import os
import sys
import tempfile
import traceback
from typing import Annotated

import typer
from c2fmae_cli.data import data
from c2fmae_cli.describe import describe
from c2fmae_cli.doctor import doctor
from c2fmae_cli.eval import eval_
from c2fmae_cli.export import export
from c2fmae_cli.import_ import import_
from c2fmae_cli.label import label
from c2fmae_cli.options import Command, command_with_settings
from c2fmae_cli.plugins import plugins
from c2fmae_cli.predict import predict
from c2fmae_cli.pretrain import pretrain
from c2fmae_cli.quickstart import quickstart
from c2fmae_cli.recipes import recipes
from c2fmae_cli.streams import protect_streams
from c2fmae_cli.view import view

from c2fmae import __version__
from c2fmae.core.errors import RunError, UserError
from c2fmae.core.failures import describe_failure
from c2fmae.core.log import configure_logging
from c2fmae.core.text import indent_message, shorten_words

app = typer.Typer(
    name="c2fmae",
    help="Coarse-to-fine masked autoencoders: pre-train a ViT on images and on maps of their content.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(quickstart)
app.command(cls=Command)(pretrain)
app.add_typer(eval_, name="eval")
app.command(cls=Command)(predict)
app.add_typer(export, name="export")
app.add_typer(import_, name="import")
app.add_typer(data, name="data")
app.command(cls=command_with_settings("c2fmae.labelling.config:LabelConfig"))(label)
app.add_typer(view, name="view")
app.add_typer(recipes, name="recipes")
app.command()(describe)
app.command()(plugins)
app.command()(doctor)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        print(f"c2fmae {__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    version: Annotated[  # noqa: ARG001 - acts through its callback
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Apply the options that come before a command."""
    configure_logging()


def main() -> None:
    """Run the command. It exits with code 2 after a user error, and with 1 after any other, without a traceback."""
    protect_streams()
    _limit_spinning()
    try:
        app()
    except Exception as error:
        message, exit_code = _describe_error(error)
        print(f"error: {indent_message(shorten_words(message))}", file=sys.stderr)
        sys.exit(exit_code)


def _limit_spinning() -> None:
    """Let threads of OpenMP that wait for others give up their core soon; torch reads the variables on its import.

    By default they wait in a loop for milliseconds. If another process has the core of the thread that they wait for,
    steps take several times as long, and most of it is waiting.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _describe_error(error: Exception) -> tuple[str, int]:
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{error.filename}: is too long for the name of a file. Use a shorter one", 2
    if failure := describe_failure(error):
        return failure, 1
    if isinstance(error, UserError | RunError):
        return str(error), 2 if isinstance(error, UserError) else 1
    with tempfile.NamedTemporaryFile("w", prefix="c2fmae-", suffix=".log", encoding="utf-8", delete=False) as file:
        traceback.print_exception(error, file=file)
    return f"{type(error).__name__}: {error}. This is a bug: please report it with the traceback in {file.name}", 1
