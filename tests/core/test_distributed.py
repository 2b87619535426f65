import os
import socket
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from c2fmae.core import distributed as world
from c2fmae.core.distributed import (
    STEP_TIMEOUT,
    World,
    first_host,
    gradient_sync,
    init_distributed,
    read_launch_variables,
    single_process,
)
from c2fmae.core.errors import RunError, UserError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "one", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


def test_torchruns_variables_are_returned_unchanged() -> None:
    assert read_launch_variables(TORCHRUN | {"HOME": "/root", "OMP_NUM_THREADS": "1"}) == TORCHRUN
    assert read_launch_variables(TORCHRUN | SRUN) == TORCHRUN  # under both, torchrun starts the processes


def test_sruns_variables_are_converted_to_those_of_torch() -> None:
    variables = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu07", "MASTER_PORT": "34567"}
    assert read_launch_variables(SRUN) == variables
    assert read_launch_variables(SRUN | {"MASTER_ADDR": "head", "MASTER_PORT": "1"}) == variables | {
        "MASTER_ADDR": "head",
        "MASTER_PORT": "1",
    }


@pytest.mark.parametrize("job", ["0", "7", "19999", "20000", "999999999"])
def test_the_port_of_a_job_is_unprivileged(job: str) -> None:
    variables = read_launch_variables(SRUN | {"SLURM_JOB_ID": job})
    assert variables is not None
    assert 20000 <= int(variables["MASTER_PORT"]) < 40000


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HOME": "/root"},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
        {"RANK": "0"},
        {"WORLD_SIZE": "4"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODELIST": "a"},
    ],
    ids=["nothing", "other things", "one process", "no size", "no rank", "a step of one task", "a batch script"],
)
def test_a_single_process_has_no_launch_variables(environ: dict[str, str]) -> None:
    assert read_launch_variables(environ) is None


@pytest.mark.parametrize(
    ("missing", "named"), [({"LOCAL_RANK"}, "LOCAL_RANK"), ({"MASTER_PORT", "MASTER_ADDR"}, "MASTER_ADDR, MASTER_PORT")]
)
def test_missing_torchrun_variables_are_rejected(missing: set[str], named: str) -> None:
    with pytest.raises(UserError) as caught:
        read_launch_variables({name: value for name, value in TORCHRUN.items() if name not in missing})
    assert str(caught.value) == f"RANK and WORLD_SIZE are set, but not {named}. Start with torchrun, or unset both"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[07-08,11]", "gpu07"),
        ("gpu[3,5-9],login", "gpu3"),
        ("rack[1-2]-node[05-06]", "rack1-node05"),
        ("a.b.c", "a.b.c"),
    ],
)
def test_the_first_host_of_a_node_list_is_found(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_collectives_of_a_single_process_return_their_input() -> None:
    each, tensor, value = single_process("cpu"), torch.ones(2), object()
    assert each == World(0, 1, torch.device("cpu"))
    assert each.is_main
    assert each.all_reduce(tensor) is tensor
    assert tensor.tolist() == [1, 1]
    assert each.broadcast_object(value) is value
    assert each.gather_objects(value) == [value]
    each.barrier()
    model = nn.Linear(1, 1)
    assert each.wrap_ddp(model) is model
    assert isinstance(gradient_sync(model, is_last_micro_batch=False), nullcontext)
    assert [World(rank, 2).is_main for rank in (0, 1)] == [True, False]


def test_a_single_process_needs_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, *SRUN):
        monkeypatch.delenv(name, raising=False)
    with init_distributed("cpu") as each:
        assert each == World()
    with pytest.raises(ValueError, match="^boom$"), init_distributed("cpu"):
        raise ValueError("boom")


def test_the_device_depends_on_its_name_and_the_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    def devices(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    devices(0)
    assert world._select_device("auto", 5) == world._select_device("cpu", 5) == torch.device("cpu")
    devices(2)
    assert world._select_device("cpu", 1) == torch.device("cpu")
    assert world._select_device("auto", 1) == world._select_device("cuda", 1) == torch.device("cuda", 1)
    for wanted in ("auto", "cuda"):
        assert refusal(wanted, 2) == (
            "device: local rank 2 needs a GPU of its own, but this machine has 2. Start one process per GPU, or set "
            "training.device=cpu"
        )
    devices(0)
    assert refusal("cuda", 0).startswith("device: local rank 0 needs a GPU of its own, but this machine has 0. ")


def refusal(wanted: Any, local_rank: int) -> str:
    with pytest.raises(UserError) as caught:
        world._select_device(wanted, local_rank)
    return str(caught.value)


FAILING = """
import sys, time, torch
from c2fmae.core.distributed import init_distributed
failing, wait, ending = sys.argv[1:]
with init_distributed("cpu") as world:
    assert world.broadcast_object([world.rank]) == [0]
    assert world.gather_objects(str(world.rank)) == (["0", "1"] if world.is_main else [])
    assert world.all_reduce(torch.ones(1)).item() == 2
    print("met", flush=True)
    if str(world.rank) == failing:
        raise SystemExit(3) if ending == "exit" else ValueError("boom")
    if wait == "sum":
        world.all_reduce(torch.ones(1))
    time.sleep(600)
"""


def pair(stack: ExitStack, failing: int, wait: str, ending: str = "boom") -> list[subprocess.Popen[str]]:
    """Two processes that meet; one fails, the other waits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for rank in range(2):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environ = os.environ | {name: str(value) for name, value in variables.items()} | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", FAILING, str(failing), wait, ending]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        stack.callback(process.kill)
        found.append(process)
    return found


@pytest.mark.unchecked
def test_all_ranks_exit_with_the_reason_when_one_fails() -> None:
    with ExitStack() as stack:
        processes = [*pair(stack, failing=1, wait="sleep", ending="exit"), *pair(stack, failing=0, wait="sum")]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "met\n"
        outputs = [process.communicate(timeout=60) for process in processes]
        assert [process.returncode for process in processes] == [1, 3, 1, 1]
    assert [out for out, _ in outputs] == [""] * 4
    asleep, left, failed, summing = (err for _, err in outputs)
    assert asleep == "process 0 exits: process 1 failed: SystemExit: 3\n"
    assert left == ""
    assert failed.endswith("ValueError: boom\n")
    assert summing.endswith("process 1 exits: process 0 failed: ValueError: boom\n")


class Store:
    """A fake of the store of a process group, which may be gone."""

    def __init__(self, *, is_gone: bool = False, **words: str) -> None:
        self.words, self.is_gone = words, is_gone

    def check(self, names: list[str]) -> bool:
        self._check_alive()
        return all(name in self.words for name in names)

    def get(self, name: str) -> bytes:
        self._check_alive()
        return self.words[name].encode()

    def set(self, name: str, value: str) -> None:
        self._check_alive()
        self.words[name] = value

    def _check_alive(self) -> None:
        if self.is_gone:
            raise ConnectionError("broken pipe")


LOST = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:9934")


@pytest.fixture
def at_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "_POLL_SECONDS", 0.0)


@pytest.mark.usefixtures("at_a_glance")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("error", [ValueError("a: b"), RuntimeError("boom"), KeyboardInterrupt(), SystemExit(3)])
def test_a_failure_is_published_to_other_ranks(error: BaseException, rank: int) -> None:
    store = Store()
    world._report_failure(error, store, rank)
    assert store.words == {"failed": f"{rank}:{type(error).__name__}: {error}"}
    world._report_failure(error, Store(is_gone=True), rank)


@pytest.mark.usefixtures("at_a_glance")
@pytest.mark.parametrize(
    ("store", "expected"),
    [
        (Store(failed="3:UserError: a: b"), "process 1 exits: process 3 failed: UserError: a: b"),
        *[
            (store, "process 1 exits: another process was killed or its machine is down")
            for store in (Store(), Store(is_gone=True))
        ],
    ],
    ids=["with words", "without", "gone"],
)
def test_the_loss_of_a_rank_is_reported_without_torchs_message(store: Store, expected: str) -> None:
    with pytest.raises(RunError) as caught:
        world._report_failure(LOST, store, 1)
    assert str(caught.value) == expected


def test_only_the_timeout_of_gpus_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = dict[str, timedelta]()

    def get_backend(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(_set_default_timeout=partial(timeouts.__setitem__, device.type))

    group = SimpleNamespace(_get_backend=get_backend)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_group", lambda: group)
    for each in (World(), World(0, 2), World(device=torch.device("cuda"))):
        each.set_gpu_timeout(STEP_TIMEOUT)
    assert timeouts == {}
    World(1, 2, torch.device("cuda", 1)).set_gpu_timeout(STEP_TIMEOUT)
    assert timeouts == {"cuda": STEP_TIMEOUT}
    assert not dist.is_nccl_available() or hasattr(dist.ProcessGroupNCCL, "_set_default_timeout")
