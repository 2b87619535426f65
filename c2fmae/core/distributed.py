"""The processes of one run: with `sharding`, all that knows `torch.distributed`.

The same command runs alone, under `torchrun` and under `srun`: who else is there is read from the environment.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from c2fmae.core.errors import RunError, UserError
from c2fmae.core.sharding import shard_model
from c2fmae.core.training import DeviceName

_FAILURE_KEY = "failed"  # the key under which a process leaves its last words for the others
_LOST_PEER_MESSAGES = (
    "gloo/transport",
    "Connection closed by peer",
    "Connection reset",
    "Broken pipe",
    "remote process exited",
)
_POLL_SECONDS = 1.0  # seconds between two looks for such words
TIMEOUT = timedelta(minutes=30)
"""For a process that is slow to read its first batch. One that is gone is noticed at once."""


@dataclass(frozen=True)
class World:
    """Which process of how many this is, and where it computes."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - is immutable

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Add a tensor up over the processes, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def shard_model(self, model: nn.Module) -> None:
        """Share a model's weights out over the processes, in place; to be done before there is an optimiser."""
        if self.size > 1:
            shard_model(model, self.device, self.size)

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """Return the model whose backward averages gradients over the processes."""
        if self.size == 1 or isinstance(model, FSDPModule):
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        if self.size > 2 and self.device.type == "cpu":
            wrapped.register_comm_hook(self.size, _average_in_rank_order)
        return wrapped

    def broadcast_object(self, value: Any) -> Any:
        """Return the first process's value in all of them."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)  # between processes of one run; never from a file
        return values[0]

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def rank_chunks(self, num_items: int, chunk_size: int) -> list[range]:
        """Return the chunks of `num_items` items that this rank computes.

        Chunks are whole and the same for any world size, so what is computed chunk by chunk does not depend on it.

        >>> World(rank=1, size=2).rank_chunks(7, 2)
        [range(2, 4), range(6, 7)]
        """
        starts = range(0, num_items, chunk_size)[self.rank :: self.size]
        return [range(start, min(start + chunk_size, num_items)) for start in starts]


def _average_in_rank_order(
    world_size: int,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # DDP insists on this annotation
) -> torch.futures.Future[Tensor]:
    """Average gradients in the order of the processes.

    A ring adds in another order when parameters come to lie elsewhere in their buckets, as they do after the first
    step of every start: a resumed run would differ in its last bits from one that was never killed. Two numbers add up
    to the same either way.
    """
    parts = [torch.empty_like(bucket.buffer()) for _ in range(world_size)]
    gathering = dist.all_gather(parts, bucket.buffer(), async_op=True)
    assert gathering is not None
    return gathering.get_future().then(lambda _: sum(parts[1:], start=parts[0]) / world_size)


def gradient_sync(model: nn.Module, *, is_last_micro_batch: bool) -> AbstractContextManager[None]:
    """Return a context in which gradients stay in this process, but for the last micro-batch's."""
    if isinstance(model, DistributedDataParallel) and not is_last_micro_batch:
        return model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last_micro_batch)
    return nullcontext()


def single_process(device: DeviceName = "auto") -> World:
    """Return the world of a single process."""
    return World(device=_select_device(device, 0))


@contextmanager
def init_distributed(device: DeviceName = "auto", *, timeout: timedelta = TIMEOUT) -> Iterator[World]:
    """Meet the other processes of the run, if there are any, and leave them in order.

    A process that fails tells the others, which then end too, within seconds, wherever they wait.
    """
    launch_variables = read_launch_variables(os.environ)
    if launch_variables is None:
        yield single_process(device)
        return
    os.environ |= launch_variables
    rank, size, local = (int(launch_variables[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    torch_device = _select_device(device, local)
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch_device.type == "cuda" else "gloo", timeout=timeout)
    store = dist.distributed_c10d._get_default_store()
    is_done = threading.Event()
    monitor = threading.Thread(target=_exit_on_peer_failure, args=(store, rank, is_done), daemon=True)
    monitor.start()
    try:
        yield World(rank, size, torch_device)
        dist.barrier()  # nobody takes the store away from those who still work
        is_done.set()
        dist.destroy_process_group()
    except BaseException as error:
        is_done.set()
        _report_failure(error, store, rank)
        raise


def read_launch_variables(environ: Mapping[str, str]) -> dict[str, str] | None:
    """Return what torch needs to know to meet the others, by torchrun's variables or srun's; None where alone.

    >>> slurm = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123"}
    >>> read_launch_variables(slurm | {"SLURM_STEP_NODELIST": "gpu[07-08,11]"})["MASTER_ADDR"]
    'gpu07'
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in environ]
        if missing:
            raise UserError(f"RANK and WORLD_SIZE are set, but not {', '.join(missing)}. Start with torchrun, or unset")
        return {name: environ[name] for name in names} if int(environ["WORLD_SIZE"]) > 1 else None
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:  # set by srun alone, not in a batch script
        return None
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "MASTER_ADDR": environ.get("MASTER_ADDR") or first_host(environ["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": environ.get("MASTER_PORT") or str(20000 + int(environ["SLURM_JOB_ID"]) % 20000),
    }


def first_host(nodes: str) -> str:
    """Return the first of SLURM's list of nodes.

    >>> [first_host(nodes) for nodes in ("login", "gpu-3,gpu-5", "n[012-015,020]-ib", "a1,b[2-3]")]
    ['login', 'gpu-3', 'n012-ib', 'a1']
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else nodes)


def _select_device(device_name: DeviceName, local_rank: int) -> torch.device:
    if device_name == "cpu" or (device_name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"device: process {local_rank} of this machine finds {count} GPUs. Start one process a GPU, or set cpu"
        )
    return torch.device("cuda", local_rank)


def _report_failure(error: BaseException, store: Any, rank: int) -> None:
    """Tell the others why this process ends; or, where it lost one of them, say that instead of what torch says."""
    if is_lost_peer_error(error):
        failure = _read_failure_reason(store)
        reason = (
            f"process {failure[0]} failed: {failure[1]}" if failure else "another was killed, or its machine is gone"
        )
        raise RunError(f"process {rank} ends, since {reason}") from None
    with suppress(Exception):  # whoever keeps the store may be gone too
        store.set(_FAILURE_KEY, f"{rank}:{type(error).__name__}: {error}")
    if rank == 0:
        time.sleep(2 * _POLL_SECONDS)  # it may be the one that keeps the store: let the others look


def is_lost_peer_error(error: BaseException) -> bool:
    """Return whether an error is torch's way of saying that another process is gone."""
    is_torch = isinstance(error, RuntimeError) and not isinstance(error, RunError)
    return is_torch and any(word in str(error) for word in _LOST_PEER_MESSAGES)


def _read_failure_reason(store: Any) -> tuple[str, str] | None:
    """Return who failed and why, as it said itself, within three glances."""
    for _ in range(3):
        try:
            if store.check([_FAILURE_KEY]):
                rank, _, reason = store.get(_FAILURE_KEY).decode().partition(":")
                return rank, reason
        except Exception:  # the process that keeps the store is gone
            return None
        time.sleep(_POLL_SECONDS)
    return None


def _exit_on_peer_failure(store: Any, rank: int, is_done: threading.Event) -> None:
    """Look for the last words of a process that failed; whoever waits for it in a collective cannot look."""
    while not is_done.wait(_POLL_SECONDS):
        try:
            if not store.check([_FAILURE_KEY]):
                continue
            failed_rank, _, reason = store.get(_FAILURE_KEY).decode().partition(":")
        except Exception:
            failed_rank, reason = "0", "it is gone"
        if int(failed_rank) != rank and not is_done.wait(_POLL_SECONDS / 2):  # by itself it may fail more readably
            print(f"process {rank} ends, since process {failed_rank} failed: {reason}", file=sys.stderr, flush=True)
            os._exit(1)
