"""Data as a recipe writes it: which scenes, how they are cut, and by how many hands."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.training import Plan
from c2fmae.data.cached import KeptScenes
from c2fmae.data.instance_order import Overflow
from c2fmae.data.loader import BatchStream, Loader
from c2fmae.data.sampler import Position, Sampler
from c2fmae.data.scenes import Scenes
from c2fmae.data.sources import open_scenes
from c2fmae.data.transforms import CentralView, RandomView, Transform

Name = Annotated[str, Field(min_length=1)]
Source = Name | Annotated[tuple[Name, ...], Field(min_length=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class LoadingConfig(Config):
    """How scenes are cut for training, and by how many hands."""

    scale: tuple[Share, Share] = (0.2, 1.0)
    """Share of the photo's area that a crop covers."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Width by height of a crop."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    overflow: Overflow = "ignore"
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

    def training_view(self, **target: Any) -> Transform:
        """Return what makes random views of scenes; `target` is the size, label stride and so on of a view."""
        return RandomView(scale=self.scale, ratio=self.ratio, flip=self.flip, overflow=self.overflow, **target)

    def training_loader(self, scenes: Scenes, view: Transform, sampler: Sampler, *, pin: bool = False) -> Loader:
        """Return what makes views of the scenes."""
        return Loader(
            scenes=scenes,
            transform=view,
            sampler=sampler,
            workers=self.workers,
            prefetch=self.prefetch,
            on_broken=self.on_broken,
            max_broken=self.max_broken,
            pin=pin,
        )

    def training_batches(
        self, scenes: Scenes, view: Transform, plan: Plan, step: int, *, seed: int, rank: int, pin: bool
    ) -> BatchStream:
        """Return a process's batches from a step of a plan on: where they are in the data is a function of the step."""
        sampler = Sampler(
            num_samples=len(scenes),
            batch_size=plan.batch_size,
            seed=seed,
            repeats=self.repeats,
            rank=rank,
            world_size=plan.batch_size // plan.each,
        )
        epochs = -(-plan.steps // plan.steps_per_epoch)
        loader = self.training_loader(scenes, view, sampler, pin=pin)
        return loader.batches(epochs, Position(*divmod(step, plan.steps_per_epoch)))

    def refuse_broken(self, count: int, total: int) -> None:
        """End a run where more samples are broken, over all processes, than may be skipped."""
        if count > self.max_broken * total:
            raise UserError(
                f"{count} of {total} samples are broken, more than the {self.max_broken:.2%} that may be skipped "
                "(data.max_broken). List them with `c2fmae data check`"
            )


class SourcesConfig(Config):
    """Which scenes are learned from, and which are held out."""

    train: Source | None = None
    """A folder, shards, a pattern of shards, a registered name such as `generated`, or a list of these."""
    options: dict[str, Any] = Field({})
    """Of a registered name: `generated` takes size, length, seed, difficulty."""
    held_out: Source | None = None
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
        scenes = _open("data.train", self.train, granularities, self.options)
        return KeptScenes(scenes) if self.keep else scenes

    def open_held_out(self, granularities: tuple[str, ...]) -> Scenes | None:
        """Return the scenes that are held out, if there are any."""
        if self.held_out is None:
            return None
        return _open("data.held_out", self.held_out, granularities, self.held_out_options)

    def held_out_view(self, **target: Any) -> CentralView:
        """Return what cuts held-out scenes."""
        return CentralView(overflow=self.overflow, **target)


def _open(
    setting: str, source: str | tuple[str, ...], granularities: tuple[str, ...], options: Mapping[str, Any]
) -> Scenes:
    try:
        for name in ("source", "granularities", "keys", "folders"):
            if name in options:
                raise UserError(f"takes no setting {name!r}")
        return open_scenes(source, granularities=granularities, **options)
    except UserError as error:
        raise UserError(f"{setting}: {error}") from error
