"""Probes with two processes."""

from pathlib import Path

import pytest
import torch
from torch.multiprocessing import spawn  # type: ignore[attr-defined]

from c2fmae.core.distributed import World
from c2fmae.core.scene import Scene
from c2fmae.eval.probes import extraction, knn, online
from tests.eval.probes import probe_processes
from tests.eval.tiny_backbones import draw_coloured_scenes, write_dataset_json, write_scenes

pytestmark = pytest.mark.numeric


@pytest.mark.unchecked
def test_two_processes_compute_the_metrics_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, count, seed in (("train", 30, 0), ("test", 21, 1)):
        scenes: list[Scene] = draw_coloured_scenes(count, labels=3, noise=140, seed=seed)
        write_dataset_json(write_scenes(tmp_path / part, scenes), ("one", "two", "three"))
    monkeypatch.setattr(extraction, "MAX_SCENES_PER_CHUNK", 8)
    monkeypatch.setattr(online, "_IMAGES_PER_CHUNK", 4)
    monkeypatch.setattr(knn, "QUERIES_PER_BLOCK", 5)
    alone = [vars(metric) for metric in probe_processes.compute_probe_metrics(World(), tmp_path, tmp_path / "alone")]
    spawn(probe_processes.run_rank, args=(tmp_path,), nprocs=probe_processes.WORLD_SIZE)
    for rank in range(probe_processes.WORLD_SIZE):
        assert torch.load(tmp_path / f"{rank}.pt") == alone
    assert {metric["key"] for metric in alone} >= {
        "train_test_overlap",
        "top1",
        "mean_iou",
        "iou",
        "probe/knn",
        "probe/linear",
    }
