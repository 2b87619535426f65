"""The command as its user meets it: in processes of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.once


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "c2fmae_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=120)


def test_help_answers_in_under_half_a_second_and_without_torch() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "Coarse-to-fine masked autoencoders" in done.stdout
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        run("--help")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5
    heavy = "{'torch', 'timm', 'torchvision', 'numpy', 'PIL', 'pydantic'}"
    script = f"import sys; import c2fmae_cli; print(sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"


def test_masks_are_drawn_and_the_file_is_named(tmp_path: Path) -> None:
    done = run("view", "masks", "--out", "deep/masks.png", "--set", "scenes=2", "--set", "size=64", cwd=tmp_path)
    assert done.stderr == "reading 2 scenes from generated\n"
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "wrote deep/masks.png"
    with Image.open(tmp_path / "deep" / "masks.png") as picture:
        assert picture.width > 11 * 64
        assert picture.height > 2 * 64


def test_schedules_are_drawn(tmp_path: Path) -> None:
    settings = ["scenes=2", "size=64", "points=5", "masking.options.curriculum.name=cosine"]
    done = run("view", "schedule", *(word for s in settings for word in ("--set", s)), cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "wrote schedule.png"
    assert (tmp_path / "schedule.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "sise=64"], "error: view masks: sise: no such setting. Did you mean 'size'?\n"),
        (
            ["--set", "masking.options.blend=topkk", "--set", "hidden=75", "--set", "patch"],
            "error: view masks: 3 problems\n"
            "  'patch': expected key=value\n"
            "  hidden: input should be less than or equal to 1, got 75\n"
            "  masking.options.blend: expected 'topk', 'sample' or 'quota', got 'topkk'. Did you mean 'topk'?\n",
        ),
        (["--set", "size=65"], "error: view masks: patch: 16 does not divide the size, 65\n"),
        (
            ["--set", "masking.name=semantc"],
            "error: view masks: masking.name: no mask named 'semantc'. Did you mean 'semantic'? "
            "Known: instance, progressive, random, semantic\n",
        ),
        (
            ["--set", "masking.options.curriculum.options.order=3"],
            "error: view masks: masking.options.curriculum.options.order: expected a list, got 3\n",
        ),
        (
            ["--set", "masking.options.curriculum.options.odrer=3"],
            "error: view masks: masking.options.curriculum.options.odrer: curriculum 'triangle' has no such option. "
            "Did you mean 'order'?\n",
        ),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(words: list[str], message: str, tmp_path: Path) -> None:
    done = run("view", "masks", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == message
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("", "cannot write the picture '.': give a name that ends in .png"),
        ("masks.jpg", "cannot write the picture 'masks.jpg': give a name that ends in .png"),
        ("folder.png", "cannot write the picture folder.png: something that is not a file is there"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(
    out: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    done = run("view", "masks", "--out", out, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


def test_too_few_class_weights_are_refused_with_the_class_that_has_none(tmp_path: Path) -> None:
    done = run("view", "masks", "--set", "masking.options.weights=[1, 1]", "--set", "size=64", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: masking.options.weights: expected a weight for each class up to " in done.stderr


def test_a_terminal_without_greek_is_no_reason_to_fail() -> None:
    command = [sys.executable, "-m", "c2fmae_cli", "plugins"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "knots (progress, ?, ?)" in done.stdout


def test_an_unknown_command_is_answered_with_exit_code_2() -> None:
    done = run("veiw")
    assert done.returncode == 2
    assert "veiw" in done.stderr


def test_doctor_lists_versions_devices_and_extras() -> None:
    done = run("doctor")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert {"c2fmae", "python", "torch", "timm", "cpu", "[label]", "[onnx]", "[dev]"} <= set(lines)
    assert all("ready" in lines[extra] or "pip install 'c2fmae[" in lines[extra] for extra in lines if extra[0] == "[")


def test_doctor_fails_where_something_required_is_too_old(tmp_path: Path) -> None:
    info = tmp_path / "numpy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import c2fmae_cli; c2fmae_cli.main()"
    command = [sys.executable, "-c", script, "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "problem: numpy 1.0 is not >=2; mend it by: pip install --upgrade c2fmae\n"


def test_plugins_lists_every_kind_with_a_line_each() -> None:
    done = run("plugins")
    assert done.returncode == 0
    assert "  semantic       Hide the same fraction of every semantic region, or more of some classes.\n" in done.stdout
    assert {"mask", "curriculum", "granularity"} <= set(done.stdout.splitlines())


def test_the_version_is_printed() -> None:
    assert run("--version").stdout == "c2fmae 0.1.0\n"
