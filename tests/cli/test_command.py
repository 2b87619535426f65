"""The command `c2fmae` in processes of its own, which each take seconds to import torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from c2fmae.masking.policies import POLICIES
from tests.cli.session import Outcome, run_commands

pytestmark = pytest.mark.unchecked


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "c2fmae_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_threads_of_openmp_wait_for_a_short_time_unless_their_policy_is_set() -> None:
    script = (
        "import os; from c2fmae_cli import main; import atexit, sys; sys.argv = ['c2fmae', '--version']\n"
        "atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT')))\n"
        "main()"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    for given, expected in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")):
        command, variables = [sys.executable, "-c", script], environment | given
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
        assert done.stdout.splitlines()[-1] == expected


def test_help_is_shown_without_slow_imports() -> None:
    heavy = "{'torch', 'timm', 'torchvision', 'numpy', 'PIL', 'pydantic'}"
    script = (
        "import atexit, sys; import c2fmae_cli; sys.argv = ['c2fmae', '--help']\n"
        f"atexit.register(lambda: print('slow:', sorted({heavy} & set(sys.modules))))\n"
        "c2fmae_cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Coarse-to-fine masked autoencoders" in done.stdout
    assert done.stdout.endswith("\nslow: []\n")


def test_help_of_every_command_is_shown_without_torch() -> None:
    script = (
        "import sys; from c2fmae_cli import app; from typer.main import get_command\n"
        "from typer.testing import CliRunner\n"
        "def walk(command, words):\n"
        "    if hasattr(command, 'list_commands'):\n"
        "        for name in command.list_commands(None):\n"
        "            yield from walk(command.get_command(None, name), [*words, name])\n"
        "    yield words\n"
        "for words in walk(get_command(app), []):\n"
        "    result = CliRunner().invoke(app, [*words, '--help'])\n"
        "    assert result.exit_code == 0, (words, result.output)\n"
        "    slow = {'torch', 'timm', 'torchvision'} & set(sys.modules)\n"
        "    print(f\"{' '.join(words)}: {sorted(slow)}\")\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    slow = dict(line.split(": ") for line in done.stdout.splitlines())
    assert {"", "doctor", "eval knn", "view masks", "data import voc", "export timm"} <= slow.keys()
    assert set(slow.values()) == {"[]"}


WRONG_SETTINGS = {
    "--set sise=64": "error: view masks: sise: no such setting. Did you mean 'size'?\n",
    "--set masking.options.blend=topkk --set hidden=75 --set patch": (
        "error: view masks: 3 problems\n"
        "  'patch': expected key=value\n"
        "  hidden: input should be less than or equal to 1, got 75\n"
        "  masking.options.blend: expected 'topk', 'sample' or 'quota', got 'topkk'. Did you mean 'topk'?\n"
    ),
    "--set size=65": "error: view masks: patch: expected a divisor of size=65, got 16\n",
    "--set masking.name=semantc": (
        "error: view masks: masking.name: no mask named 'semantc'. Did you mean 'semantic'? "
        "Known: blocks, instance, progressive, random, semantic, uniform, units\n"
    ),
    "--set masking.options.curriculum.options.order=3": (
        "error: view masks: masking.options.curriculum.options.order: expected a list, got 3\n"
    ),
    "--set masking.options.curriculum.options.odrer=3": (
        "error: view masks: masking.options.curriculum.options.odrer: curriculum 'triangle' has no such option. "
        "Did you mean 'order'?\n"
    ),
}


def test_a_user_error_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    outcomes, stderr = run_commands(*(f"view masks {words}" for words in WRONG_SETTINGS), cwd=tmp_path)
    assert outcomes == [Outcome(2, [])] * len(WRONG_SETTINGS)
    assert stderr == "".join(WRONG_SETTINGS.values())
    assert not list(tmp_path.iterdir())


def test_a_terminal_without_greek_letters_shows_replacements() -> None:
    command = [sys.executable, "-m", "c2fmae_cli", "plugins"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "knots (progress, ?, ?)" in done.stdout


def test_an_unknown_command_is_an_error_with_exit_code_2() -> None:
    done = run("veiw")
    assert done.returncode == 2
    assert "veiw" in done.stderr


def test_plugins_and_doctor_list_what_is_installed(tmp_path: Path) -> None:
    (plugins, doctor), stderr = run_commands("plugins", "doctor", cwd=tmp_path)
    assert (plugins.exit_code, doctor.exit_code, stderr) == (0, 0, "")
    assert f"  semantic       {POLICIES.describe('semantic')}" in plugins.lines
    assert {"mask", "curriculum", "granularity"} <= {*plugins.lines}
    headings = {line.split()[0] for line in doctor.lines}
    assert {"c2fmae", "python", "torch", "timm", "cpu", "[onnx]", "[dev]"} <= headings


def test_the_version_is_printed() -> None:
    assert run("--version").stdout == "c2fmae 0.2.0\n"
