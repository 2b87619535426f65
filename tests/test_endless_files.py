"""No reader waits for a pipe or a terminal, whose content never comes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from c2fmae.core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from c2fmae.core.errors import UserError
from c2fmae.core.json_file import read_json
from c2fmae.core.masks import Masks
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.weight_file import read_weight_file
from c2fmae.core.yaml_file import read_yaml
from c2fmae.data.importers.coco import CocoPanoptic
from c2fmae.data.importers.voc import Voc
from c2fmae.data.info import DatasetInfo
from c2fmae.data.key_list import read_keys
from c2fmae.data.sources import open_scenes
from c2fmae.data.suites.tar_tree import open_tar_tree
from c2fmae.eval.cache import open_tensors
from c2fmae.eval.results import load_result
from c2fmae.models.backbones import load_backbone
from c2fmae.report import Figure

READERS: dict[str, Callable[[Path], Any]] = {
    "a.yaml": read_yaml,
    "a.json": read_json,
    "set/dataset.json": lambda path: DatasetInfo.read_from_dir(path.parent),
    "a.jsonl": read_rows,
    "a.txt": read_keys,
    "a.pth": read_weight_file,
    "a.safetensors": load_backbone,
    "folder/model.safetensors": lambda path: read_weight_file(path.parent),
    "indexed/pytorch_model.bin.index.json": lambda path: read_weight_file(path.parent),
    "hf/config.json": lambda path: load_backbone(path.parent),
    "a/step-00000001/checkpoint.json": lambda path: load_checkpoint(path.parent),
    "b/step-00000001/tensors.safetensors": lambda path: load_checkpoint(path.parent),
    "masks.safetensors": Masks.load,
    "features.safetensors": open_tensors,
    "results.json": lambda path: load_result(path.parent),
    "shard.tar": open_scenes,
    "classes.tar": open_tar_tree,
    "images/a.jpg": lambda path: open_scenes(path.parent)[0],
    "voc/ImageSets/Segmentation/val.txt": lambda path: Voc(path.parents[2], "val"),
    "coco/annotations/panoptic_val2017.json": lambda path: CocoPanoptic(path.parents[1], "val2017"),
    "figure.png": lambda path: Figure(path, "").to_html(),
}


def read_endless_files(root: Path) -> None:
    """Read a pipe and a link to a terminal as each kind of file, and print the messages."""
    _, terminal = os.openpty()
    for name, read in READERS.items():
        for kind in ("pipe", "terminal"):
            path = root / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_neighbours(path)
            os.mkfifo(path) if kind == "pipe" else path.symlink_to(os.ttyname(terminal))
            try:
                read(path)
                print(f"{kind} {name}: was read", flush=True)
            except UserError as error:
                print(f"{kind} {name}: {str(error).replace(str(path), 'FILE')}", flush=True)


def write_neighbours(path: Path) -> None:
    """Write the files and directories that are expected beside a file."""
    match path.name:
        case "checkpoint.json":
            save_checkpoint(path.parents[1], Checkpoint(1, {}, {}))
            path.unlink()
        case "tensors.safetensors":
            save_checkpoint(path.parents[1], Checkpoint(1, {}, {}))
            path.unlink()
        case "val.txt":
            (path.parents[2] / "SegmentationClass").mkdir()
            (path.parents[2] / "SegmentationObject").mkdir()
        case "panoptic_val2017.json":
            (path.parents[1] / "val2017").mkdir()


@pytest.mark.unchecked
def test_no_reader_waits_for_a_pipe_or_a_terminal(tmp_path: Path) -> None:
    program = "import sys, tests.test_endless_files as test; test.read_endless_files(test.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(READERS)
    assert [line for line in lines if ": FILE: is not a regular file. " not in line] == []
