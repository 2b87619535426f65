"""Evaluation commands in the process of the tests."""

from c2fmae_cli.eval import eval_
from typer.testing import CliRunner, Result


def run_eval(*args: str, exit_code: int = 0) -> str:
    """Return the output of `c2fmae eval`, which must end with this code; errors are raised."""
    result: Result = CliRunner().invoke(eval_, args)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result.stdout
