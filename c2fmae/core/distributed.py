"""The processes of one run. Only this module and `sharding` use `torch.distributed`.

The same command runs as a single process, under `torchrun` and under `srun`: ranks are read from the environment.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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
from c2fmae.core.failures import convert_failure
from c2fmae.core.running_statistics import running_statistics
from c2fmae.core.sharding import shard_model
from c2fmae.core.training import DeviceName

_FAILURE_KEY = "failed"  # store key of the failure reason that a rank publishes
_LOST_PEER_MESSAGES = (
    "gloo/transport",
    "Connection closed by peer",
    "Connection reset",
    "Broken pipe",
    "remote process exited",
)
_POLL_SECONDS = 1.0  # seconds between two checks for a failure reason
TIMEOUT = timedelta(minutes=30)
"""Timeout of collectives: long enough for a slow first batch, compilation, and what the main process does alone."""
STEP_TIMEOUT = timedelta(minutes=10)
"""Timeout of collectives of GPUs within steps: a rank waits for others only until they have a batch."""


@dataclass(frozen=True)
class World:
    """Rank and device of this process, and the number of processes."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - is immutable

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes files and logs."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place, and return it."""
        return self.start_all_reduce(tensor)()

    def start_all_reduce(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start to sum a tensor over all ranks, in place. Return a function that waits for the sum and returns it."""
        work = dist.all_reduce(tensor, async_op=True) if self.size > 1 else None

        def wait() -> Tensor:
            if work is not None:
                work.wait()
            return tensor

        return wait

    def set_gpu_timeout(self, timeout: timedelta) -> None:
        """Set the timeout of all later collectives of GPUs. Those of CPUs, which carry objects, keep theirs."""
        if self.size > 1 and self.device.type == "cuda":
            backend: Any = dist.distributed_c10d._get_default_group()._get_backend(self.device)
            backend._set_default_timeout(timeout)

    def shard_model(self, model: nn.Module) -> None:
        """Shard the parameters of a model over all ranks, in place. Call it before creating the optimiser."""
        if self.size > 1:
            shard_model(model, self.device, self.size)

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """Wrap the model in DDP, which averages gradients over ranks; sharded and single-process models stay as is."""
        if self.size == 1 or isinstance(model, FSDPModule):
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        # Other buffers are the same on all ranks, and a queue would be sent in each forward pass. The argument of this
        # name is deprecated.
        wrapped.broadcast_buffers = bool(running_statistics(model))
        if self.size > 2 and self.device.type == "cpu":
            wrapped.register_comm_hook(self.size, _average_in_rank_order)
        return wrapped

    def broadcast_object(self, value: Any) -> Any:
        """Return the value of the main process on all ranks."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)  # pickles, but only between processes of this run
        return values[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order, on the main process; an empty list on the others."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)  # pickles, but only between processes of this run
        return values or []

    def barrier(self) -> None:
        """Wait until all ranks reach this call."""
        if self.size > 1:
            dist.barrier()

    def rank_chunks(self, num_items: int, chunk_size: int) -> list[range]:
        """Return the chunks of `num_items` items that this rank computes.

        Chunks are the same for any world size, so the results of chunks do not depend on it.

        >>> World(rank=1, size=2).rank_chunks(7, 2)
        [range(2, 4), range(6, 7)]
        """
        starts = range(0, num_items, chunk_size)[self.rank :: self.size]
        return [range(start, min(start + chunk_size, num_items)) for start in starts]


def _average_in_rank_order(
    world_size: int,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # DDP insists on this annotation
) -> torch.futures.Future[Tensor]:
    """Average gradients in the order of ranks.

    The order of a ring all-reduce depends on the position of parameters in their bucket, which changes after the first
    step of every start, so a resumed run would differ in its last bits from one that was never stopped. With two ranks
    the order does not matter.
    """
    parts = [torch.empty_like(bucket.buffer()) for _ in range(world_size)]
    gathering = dist.all_gather(parts, bucket.buffer(), async_op=True)
    assert gathering is not None
    return gathering.get_future().then(lambda _: sum(parts[1:], start=parts[0]) / world_size)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows)
        return torch.cat(gathered)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


def gather_rows_with_gradient(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, in the order of ranks; each rank passes as many. One process gets its own.

    The gradient of a row is the sum of the gradients that all ranks have for it. So if each rank's loss is its share of
    a sum over ranks, all gradients are those of the sum.
    """
    return _GatherRows.apply(rows) if _has_peers() else rows


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, as `gather_rows_with_gradient` does, but without gradient."""
    return gather_rows_with_gradient(rows.detach())


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks. Its gradient is summed over ranks too."""
    return _SumOverRanks.apply(tensor) if _has_peers() else tensor


def _has_peers() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def gradient_sync(model: nn.Module, *, is_last_micro_batch: bool) -> AbstractContextManager[None]:
    """Return a context for the backward pass that synchronises gradients only for the last micro-batch."""
    if isinstance(model, DistributedDataParallel) and not is_last_micro_batch:
        return model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last_micro_batch)
    return nullcontext()


def single_process(device: DeviceName = "auto") -> World:
    """Return the `World` of a single process."""
    return World(device=_select_device(device, 0))


@contextmanager
def init_distributed(device: DeviceName = "auto", *, timeout: timedelta = TIMEOUT) -> Iterator[World]:
    """Initialise the process group, if the environment defines one, and destroy it at the end of the block.

    When a rank fails, the other ranks exit within seconds, even while they wait in a collective.
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
        dist.barrier()  # the store must outlive all ranks
        is_done.set()
        dist.destroy_process_group()
    except BaseException as error:
        is_done.set()
        _report_failure(error, store, rank)
        raise


def read_launch_variables(environ: Mapping[str, str]) -> dict[str, str] | None:
    """Return the variables that torch needs, from those of torchrun or srun; None for a single process.

    >>> slurm = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123"}
    >>> read_launch_variables(slurm | {"SLURM_STEP_NODELIST": "gpu[07-08,11]"})["MASTER_ADDR"]
    'gpu07'
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in environ]
        if missing:
            raise UserError(
                f"RANK and WORLD_SIZE are set, but not {', '.join(missing)}. Start with torchrun, or unset both"
            )
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
    """Return the first host name in a node list of SLURM.

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
            f"device: local rank {local_rank} needs a GPU of its own, but this machine has {count}. "
            "Start one process per GPU, or set training.device=cpu"
        )
    return torch.device("cuda", local_rank)


def _report_failure(error: BaseException, store: Any, rank: int) -> None:
    """Publish the reason of a failure. If another rank failed first, raise a `RunError` that names this rank."""
    if is_lost_peer_error(error):
        failure = _read_failure_reason(store)
        reason = (
            f"process {failure[0]} failed: {failure[1]}"
            if failure
            else "another process was killed or its machine is down"
        )
        raise RunError(f"process {rank} exits: {reason}") from None
    error = convert_failure(error)
    with suppress(Exception):  # the rank that hosts the store may be gone too
        store.set(_FAILURE_KEY, f"{rank}:{type(error).__name__}: {error}")
    if rank == 0:
        time.sleep(2 * _POLL_SECONDS)  # rank 0 may host the store: let the others read it


def is_lost_peer_error(error: BaseException) -> bool:
    """Return whether torch raised an error because another rank has exited."""
    is_torch = isinstance(error, RuntimeError) and not isinstance(error, RunError)
    return is_torch and any(message in str(error) for message in _LOST_PEER_MESSAGES)


def _read_failure_reason(store: Any) -> tuple[str, str] | None:
    """Return the rank that failed and its reason, or None if no rank publishes one within three checks."""
    for _ in range(3):
        try:
            if store.check([_FAILURE_KEY]):
                rank, _, reason = store.get(_FAILURE_KEY).decode().partition(":")
                return rank, reason
        except Exception:  # the rank that hosts the store is gone
            return None
        time.sleep(_POLL_SECONDS)
    return None


def _exit_on_peer_failure(store: Any, rank: int, is_done: threading.Event) -> None:
    """Exit when another rank publishes a failure, since this one may wait for it in a collective."""
    while not is_done.wait(_POLL_SECONDS):
        try:
            if not store.check([_FAILURE_KEY]):
                continue
            failed_rank, _, reason = store.get(_FAILURE_KEY).decode().partition(":")
        except Exception:
            failed_rank, reason = "0", "it is down"
        if int(failed_rank) != rank and not is_done.wait(_POLL_SECONDS / 2):  # its own error is clearer
            print(f"process {rank} exits: process {failed_rank} failed: {reason}", file=sys.stderr, flush=True)
            os._exit(1)
