"""Evaluation commands in the process of the tests."""

from c2fmae_cli.eval import eval_
from typer.testing import CliRunner, Result


def run_eval(*args: str) -> str:
    """Return the output of `c2fmae eval`; errors are raised."""
    result: Result = CliRunner().invoke(eval_, args)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout
