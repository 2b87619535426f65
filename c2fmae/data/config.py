"""Data as a recipe writes it: which scenes, how they are cut, and by how many hands."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from c2fmae.core.config import Config, Fraction
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import InstanceOverflow
from c2fmae.core.training import TrainingPlan
from c2fmae.data.cached import CachedScenes
from c2fmae.data.loader import BatchStream, SceneLoader
from c2fmae.data.sampler import DataPosition, Sampler
from c2fmae.data.scenes import Scenes
from c2fmae.data.sources import open_scenes
from c2fmae.data.transforms import CentralView, RandomView, Transform

NonEmptyStr = Annotated[str, Field(min_length=1)]
DataSourceOption = NonEmptyStr | Annotated[tuple[NonEmptyStr, ...], Field(min_length=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class LoadingConfig(Config):
    """How scenes are cut for training, and by how many hands."""

    scale: tuple[Fraction, Fraction] = (0.2, 1.0)
    """Share of the photo's area that a crop covers."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """Width by height of a crop."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    overflow: InstanceOverflow = "ignore"
    """What objects become of which the model has no id left."""
    repeats: Annotated[int, Field(ge=1)] = 1
    """Views of a scene in a batch."""
    keep: bool = False
    """Keep scenes in memory from when they are first asked for: for small sets that are slow to draw or decode."""
    workers: Annotated[int, Field(ge=0)] = 8
    """Processes that make batches, for each process that trains; 0 makes them in between steps."""
    prefetch: Annotated[int, Field(ge=1)] = 2
    on_broken: Literal["skip", "error"] = "skip"
    max_broken: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the samples that may be skipped, over all processes."""

    def build_training_view(self, **view_options: Any) -> Transform:
        """Return what makes random views of scenes; `view_options` is the size, label stride and so on of a view."""
        return RandomView(scale=self.scale, ratio=self.ratio, flip=self.flip, overflow=self.overflow, **view_options)

    def build_loader(
        self, scenes: Scenes, view: Transform, sampler: Sampler, *, pin_memory: bool = False
    ) -> SceneLoader:
        """Return what makes views of the scenes."""
        return SceneLoader(
            scenes=scenes,
            transform=view,
            sampler=sampler,
            workers=self.workers,
            prefetch=self.prefetch,
            on_broken=self.on_broken,
            max_broken=self.max_broken,
            pin_memory=pin_memory,
        )

    def stream_training_batches(
        self, scenes: Scenes, view: Transform, plan: TrainingPlan, step: int, *, seed: int, rank: int, pin_memory: bool
    ) -> BatchStream:
        """Return a process's batches from a step of a plan on: where they are in the data is a function of the step."""
        sampler = Sampler(
            num_samples=len(scenes),
            batch_size=plan.batch_size,
            seed=seed,
            repeats=self.repeats,
            rank=rank,
            world_size=plan.batch_size // plan.batch_size_per_rank,
        )
        epochs = -(-plan.steps // plan.steps_per_epoch)
        loader = self.build_loader(scenes, view, sampler, pin_memory=pin_memory)
        return loader.stream_batches(epochs, DataPosition(*divmod(step, plan.steps_per_epoch)))

    def check_broken(self, count: int, total: int) -> None:
        """End a run where more samples are broken, over all processes, than may be skipped."""
        if count > self.max_broken * total:
            raise UserError(
                f"{count} of {total} samples are broken, more than the {self.max_broken:.2%} that may be skipped "
                "(data.max_broken). List them with `c2fmae data check`"
            )


class SourcesConfig(Config):
    """Which scenes are learned from, and which are held out."""

    train: DataSourceOption | None = None
    """A folder, shards, a pattern of shards, a registered name such as `generated`, or a list of these."""
    options: dict[str, Any] = Field({})
    """Of a registered name: `generated` takes size, length, seed, difficulty."""
    held_out: DataSourceOption | None = None
    """Scenes that are not learned from, on which the same losses are taken."""
    held_out_options: dict[str, Any] = Field({})
    held_out_samples: Annotated[int, Field(ge=1)] = 1024
    """At most so many of them, evenly spread; they are kept in memory."""


class DataConfig(LoadingConfig, SourcesConfig):  # in this order YAML begins with the sources
    """What is learned from, and what is held out to see how well."""

    def open_training(self, granularities: tuple[str, ...]) -> Scenes:
        """Return the scenes to learn from."""
        if self.train is None:
            raise UserError("data.train: no data is given. Say which with --data, or take --data generated")
        scenes = _open_option("data.train", self.train, granularities, self.options)
        return CachedScenes(scenes) if self.keep else scenes

    def open_held_out(self, granularities: tuple[str, ...]) -> Scenes | None:
        """Return the scenes that are held out, if there are any."""
        if self.held_out is None:
            return None
        return _open_option("data.held_out", self.held_out, granularities, self.held_out_options)

    def build_held_out_view(self, **view_options: Any) -> CentralView:
        """Return what cuts held-out scenes."""
        return CentralView(overflow=self.overflow, **view_options)


def _open_option(
    option: str, source: str | tuple[str, ...], granularities: tuple[str, ...], options: Mapping[str, Any]
) -> Scenes:
    try:
        for name in ("source", "granularities", "keys", "folders"):
            if name in options:
                raise UserError(f"takes no setting {name!r}")
        return open_scenes(source, granularities=granularities, **options)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
