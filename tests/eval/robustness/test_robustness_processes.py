"""Two processes share the photos of a cell and find what one finds, to the last bit."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import start_processes  # type: ignore[attr-defined]

from c2fmae.core.distributed import World
from tests.eval.robustness import robustness_processes

pytestmark = pytest.mark.numeric


@pytest.mark.once
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    alone = robustness_processes.metric_values(robustness_processes.compute_robustness(World(), tmp_path / "alone"))
    multiprocessing.set_forkserver_preload([robustness_processes.__name__])
    start_processes(
        robustness_processes.run_rank,
        args=(tmp_path,),
        nprocs=robustness_processes.WORLD_SIZE,
        start_method="forkserver",
    )
    assert torch.load(tmp_path / "0.pt") == alone != []
    assert torch.load(tmp_path / "1.pt") == []
    ours, theirs = (sorted((tmp_path / who).iterdir()) for who in ("alone", "both"))
    assert [each.name for each in ours] == [each.name for each in theirs]
    assert [each.read_bytes() for each in ours] == [each.read_bytes() for each in theirs]
