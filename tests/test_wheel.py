"""What is built is what is in the tree: a forgotten subpackage works in editable mode and nowhere else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.unchecked


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy: setuptools leaves its build folder where it builds.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*pip, str(out), str(source)], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: Path) -> None:
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "c2fmae").rglob("*.py")} | {"c2fmae/py.typed"}
    expected |= {f"c2fmae_cli/{path.relative_to(ROOT / 'cli')}" for path in (ROOT / "cli").rglob("*.py")}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected


def test_the_wheel_carries_the_licence_and_the_command(wheel: Path) -> None:
    files = {name.split(".dist-info/")[1]: name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" in name}
    archive = zipfile.ZipFile(wheel)
    assert archive.read(files["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
    assert archive.read(files["entry_points.txt"]).decode() == "[console_scripts]\nc2fmae = c2fmae_cli:main\n"


def test_the_wheel_runs_without_the_tree(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    imports = "import c2fmae_cli, c2fmae.masking, c2fmae.views.masks"
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {imports}; print(c2fmae_cli.__file__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "c2fmae_cli" / "__init__.py")
