"""Two ranks share the images of each cell, and their results are bit-identical to those of a single process."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import start_processes  # type: ignore[attr-defined]

from c2fmae.core.distributed import World
from tests.eval.robustness import robustness_processes

pytestmark = pytest.mark.numeric


@pytest.mark.unchecked
def test_results_and_files_of_two_processes_equal_those_of_one(tmp_path: Path) -> None:
    alone = robustness_processes.list_metrics(robustness_processes.compute_robustness(World(), tmp_path / "alone"))
    multiprocessing.set_forkserver_preload([robustness_processes.__name__])
    start_processes(
        robustness_processes.run_rank,
        args=(tmp_path,),
        nprocs=robustness_processes.WORLD_SIZE,
        start_method="forkserver",
    )
    assert torch.load(tmp_path / "0.pt") == alone != []
    assert torch.load(tmp_path / "1.pt") == []
    single, shared = (sorted((tmp_path / name).iterdir()) for name in ("alone", "both"))
    assert [path.name for path in single] == [path.name for path in shared]
    assert [path.read_bytes() for path in single] == [path.read_bytes() for path in shared]
