"""Threads of torch."""

import os
from collections.abc import Iterator

import pytest
import torch

from c2fmae.core import threads
from c2fmae.core.distributed import World
from c2fmae.core.threads import fitting_threads


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch has four threads by default, and nothing sets them explicitly."""
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(threads, "_DEFAULT_THREADS", 4)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_a_new_run_computes_on_idle_cores_and_a_resumed_one_as_at_its_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger=threads.__name__)
    monkeypatch.setattr(threads, "count_idle_cores", lambda: 3)
    for recorded, expected, message in (
        (None, 3, "3 threads: no more cores are idle. OMP_NUM_THREADS sets another number"),
        (2, 2, "2 threads: as at the start of the run. OMP_NUM_THREADS sets another number"),
        (64, 3, "3 threads: no more cores are idle. OMP_NUM_THREADS sets another number"),  # started on another machine
        (4, 4, None),
    ):
        caplog.clear()
        with fitting_threads(World(), recorded):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 4
        assert caplog.messages == ([message] if message else [])


def test_idle_second_threads_of_cores_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_DEFAULT_THREADS", 2)
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "count_idle_cores", lambda: 4)
    with fitting_threads(World()):
        assert torch.get_num_threads() == 2
    monkeypatch.setattr(threads, "count_idle_cores", lambda: 1)
    with fitting_threads(World()):
        assert torch.get_num_threads() == 1


def test_an_explicit_number_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "count_idle_cores", lambda: 1)
    torch.set_num_threads(3)
    with fitting_threads(World(), 2):
        assert torch.get_num_threads() == 3
    torch.set_num_threads(4)
    with fitting_threads(World(rank=0, size=2)):
        assert torch.get_num_threads() == 4
    with fitting_threads(World(device=torch.device("cuda"))):
        assert torch.get_num_threads() == 4
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "4")
            with fitting_threads(World()):
                assert torch.get_num_threads() == 4


def test_the_number_of_threads_is_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "count_idle_cores", lambda: 1)
    with pytest.raises(KeyError), fitting_threads(World()):
        raise KeyError
    assert torch.get_num_threads() == 4
