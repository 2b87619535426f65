"""The command `c2fmae`: it translates arguments into configs and calls, and errors into one message.

Slow packages such as torch are imported inside the command that needs them, so that `--help` is fast.
"""

import sys
from typing import Annotated

import typer
from c2fmae_cli.data import data
from c2fmae_cli.describe import describe
from c2fmae_cli.doctor import doctor
from c2fmae_cli.eval import eval_
from c2fmae_cli.export import export
from c2fmae_cli.import_ import import_
from c2fmae_cli.plugins import plugins
from c2fmae_cli.pretrain import pretrain
from c2fmae_cli.quickstart import quickstart
from c2fmae_cli.recipes import recipes
from c2fmae_cli.streams import protect_streams
from c2fmae_cli.view import view

from c2fmae import __version__
from c2fmae.core.errors import RunError, UserError
from c2fmae.core.log import configure_logging
from c2fmae.core.text import indent_message

app = typer.Typer(
    name="c2fmae",
    help="Coarse-to-fine masked autoencoders: pre-train a ViT on images and on maps of their content.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(quickstart)
app.command()(pretrain)
app.add_typer(eval_, name="eval")
app.add_typer(export, name="export")
app.add_typer(import_, name="import")
app.add_typer(data, name="data")
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
    """Run the command: a user error is printed and exits with code 2, a failed run with code 1."""
    protect_streams()
    try:
        app()
    except UserError as error:
        print(f"error: {indent_message(str(error))}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {indent_message(str(error))}", file=sys.stderr)
        sys.exit(1)
