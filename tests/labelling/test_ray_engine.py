"""Labelling by a Ray cluster on this machine, one of whose processes is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.labelling.simple_labellers import write_images

pytestmark = pytest.mark.unchecked

LABELLER = """
import os
from pathlib import Path

from tests.labelling.simple_labellers import Brightness


class Fragile(Brightness):
    def label(self, inputs, stride):
        lost = Path("lost")
        if os.environ.get("IS_FRAGILE") and self.batches and not lost.exists():
            lost.touch()
            os._exit(1)
        return super().label(inputs, stride)
"""


def label(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "HOME": str(folder), **variables}
    command = [sys.executable, "-m", "c2fmae_cli", "label", "images", *words, "--device", "cpu"]
    options = ["--instances", "mine:Fragile", "--set", "shard_size=4", "--set", "batch_size=2"]
    return subprocess.run(
        [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_missing_package_is_an_error_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError")
    (tmp_path / "mine.py").write_text(LABELLER)
    write_images(tmp_path / "images", 1)
    outcome = label(tmp_path, "out", "--engine", "ray")
    assert outcome.returncode == 2
    assert outcome.stderr.splitlines()[-1] == (
        'error: --engine ray: needs the package ray. Install it: pip install "c2fmae[ray]"'
    )
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_loses_a_process_writes_the_bytes_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "mine.py").write_text(LABELLER)
    write_images(tmp_path / "images", 14, broken=[9])
    alone = label(tmp_path, "alone")
    assert alone.returncode == 0, alone.stderr
    cluster = label(tmp_path, "cluster", "--engine", "ray", IS_FRAGILE="1")
    assert cluster.returncode == 0, cluster.stderr
    assert (tmp_path / "lost").exists()
    assert cluster.stdout.splitlines()[-2] == alone.stdout.splitlines()[-2].replace("alone", "cluster")
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / out).iterdir() if path.suffix != ".index"}
        for out in ("alone", "cluster")
    ]
    assert contents[0] == contents[1]
