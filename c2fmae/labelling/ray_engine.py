"""Labelling by the processes of a Ray cluster: the shard of a process that is lost is given to another."""

import os
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from c2fmae.core.distributed import single_process
from c2fmae.core.errors import RunError, UserError
from c2fmae.data.shard_writing import ShardSet
from c2fmae.labelling.config import LabelConfig
from c2fmae.labelling.label import make_context, open_images
from c2fmae.labelling.pipeline import BatchReport
from c2fmae.labelling.registry import build_labellers
from c2fmae.labelling.shard_labelling import ShardLabelling

_MAX_RETRIES = 2  # of a shard whose process was lost: a shard that ends every process is the cause itself


@dataclass(frozen=True)
class RayEngine:
    """What a process needs to open the same images and build the same labellers. Called, it writes shards.

    Processes are started for the GPUs that the cluster has, or for its CPUs if the labellers run on these. Paths are
    those of a shared file system. Without a cluster, Ray starts one on this machine.
    """

    images: str
    keys: Collection[str] | None
    limit: int | None
    out: Path
    config: LabelConfig
    semantics: str | None
    instances: str | None
    device: Literal["cpu", "cuda"]
    num_workers: int
    """Threads of each process that decode and encode. They are its CPUs; with 0 it has one."""

    def __post_init__(self) -> None:
        """Raise an error if Ray is missing."""
        _import_ray()

    def __call__(self, numbers: Sequence[int], plan_digest: str) -> Generator[BatchReport, None, None]:
        """Write shards, and yield the reports of each when it is finished."""
        if not numbers:
            return
        ray = _import_ray()
        from ray.util import ActorPool

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(log_to_driver=False, logging_level="WARNING", include_dashboard=False)
        try:
            num_gpus, num_cpus = int(self.device == "cuda"), max(self.num_workers, 1)
            num_actors = _count_actors(ray.cluster_resources(), num_cpus=num_cpus, num_gpus=num_gpus)
            actor = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=-1, max_task_retries=_MAX_RETRIES)(
                _ShardActor
            )
            actors = [actor.remote(self, plan_digest, Path.cwd()) for _ in range(min(num_actors, len(numbers)))]
            for reports in ActorPool(actors).map_unordered(lambda idle, number: idle.label.remote(number), numbers):
                yield from reports
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayActorError as error:
            raise RunError(
                f"a process of Ray was lost {_MAX_RETRIES + 1} times with the same shard. Label it without --engine ray"
                " to see why"
            ) from error
        finally:
            ray.shutdown()


class _ShardActor:
    """A process that labels one shard after the other."""

    def __init__(self, engine: RayEngine, plan_digest: str, folder: Path) -> None:
        os.chdir(folder)  # which paths are relative to
        config, scenes = engine.config, open_images(engine.images, keys=engine.keys, limit=engine.limit)
        labellers = build_labellers(
            engine.semantics,
            engine.instances,
            make_context(config, scenes.info, single_process(engine.device)),
            semantics_options=config.semantics,
            instances_options=config.instances,
        )
        shards = ShardSet.from_keys(engine.out, scenes.keys, name=config.name, shard_size=config.shard_size)
        self.labelling = ShardLabelling(scenes, labellers, shards, config, plan_digest, engine.num_workers)

    def label(self, number: int) -> list[BatchReport]:
        """Write a shard, and return the reports of its batches."""
        return list(self.labelling.run([number]))


def _import_ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise UserError('--engine ray: needs the package ray. Install it: pip install "c2fmae[ray]"') from error
    return ray  # type: ignore[no-any-return]


def _count_actors(resources: dict[str, Any], *, num_cpus: int, num_gpus: int) -> int:
    """Return how many processes fit into the cluster."""
    limits = [resources.get("CPU", 0) // num_cpus]
    if num_gpus:
        limits.append(resources.get("GPU", 0) // num_gpus)
    if not (count := int(min(limits))):
        raise UserError(
            f"--engine ray: the cluster has {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
            f" (expected at least {num_cpus} and {num_gpus}). Add nodes, or choose another --device or --workers"
        )
    return count
