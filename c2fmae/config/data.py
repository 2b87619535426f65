"""Data of an experiment: sources of scenes, random views of them, and the processes that load them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from pydantic import BeforeValidator, Field, field_serializer

from c2fmae.config.migrations import migrate_data
from c2fmae.core.choice import Choice
from c2fmae.core.config import RESUME_SAFE, Config, Fraction, PositiveFloat, PositiveInt, UnitInterval, WorkerCount
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import InstanceOverflow
from c2fmae.core.registry import Registry
from c2fmae.core.training import TrainingPlan

if TYPE_CHECKING:
    import c2fmae.data.loader
    import c2fmae.data.sampler
    import c2fmae.data.scenes
    import c2fmae.data.transforms


class DatasetConfig(Choice):
    """A registered data set: `{name: generated, options: {size: 96}}`.

    All dumps list only the options that were given. Defaults of the others may depend on the use: a backbone is
    evaluated on generated images of its own image size, for example.
    """

    @classmethod
    def registry(cls) -> Registry[Any]:
        """Return the registry of data sets."""
        from c2fmae.data.sources import DATASETS

        return DATASETS

    @field_serializer("options")
    def _dump_options(self, options: Config, info: Any) -> dict[str, Any]:
        return options.model_dump(mode=info.mode, exclude_unset=True)

    def with_defaults(self, **defaults: Any) -> "DatasetConfig":
        """Return a copy in which options that were not given have these defaults."""
        return DatasetConfig(name=self.name, options={**defaults, **self.given_options()})


class GeneratedOptions(TypedDict, total=False):
    """Options of the data set `generated`, so that mypy checks them in recipes. Defaults are those of the data set."""

    size: int
    length: int
    seed: int
    difficulty: Literal["plain", "easy", "medium", "hard"]
    domain: str


def parse_source(value: Any) -> DatasetConfig | str | tuple[DatasetConfig | str, ...]:
    """Return the data source that a config value describes: a registered data set, a path, or a tuple of these.

    A name or a mapping gives a registered data set, and any other string a path. An existing file or folder takes
    precedence over a registered data set of the same name.
    """
    match value:
        case DatasetConfig():
            return value
        case Mapping():
            return DatasetConfig.model_validate(value)
        case str() if value:
            is_name = value in DatasetConfig.registry() and not Path(value).exists()
            return DatasetConfig(name=value) if is_name else value
        case list() | tuple() if value and not any(isinstance(item, list | tuple) for item in value):
            items = [parse_source(item) for item in value]
            return tuple(item for item in items if not isinstance(item, tuple))
    raise UserError(f"expected a path, a registered name, or a list of these, got {value!r}")


DataSourceOption = Annotated[DatasetConfig | str | tuple[DatasetConfig | str, ...], BeforeValidator(parse_source)]
"""A folder, a shard, a pattern of shards or a URL; a registered data set; or a list of these."""


def parse_held_out(value: Any) -> DatasetConfig | str | tuple[DatasetConfig | str, ...] | float:
    """Return the held-out data that a config value describes: a source, or a fraction of the training data."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 < value < 1:
            raise UserError(f"expected a source, or a fraction between 0 and 1, got {value}")
        return float(value)
    return parse_source(value)


def source_name(source: DataSourceOption) -> str:
    """Return the name of a data set, or a path; for a list, all of them separated by commas."""
    if isinstance(source, tuple):
        return ", ".join(map(source_name, source))
    return source.name if isinstance(source, DatasetConfig) else source


def describe_source(source: DataSourceOption) -> str:
    """Return the name of a data set with its options, or a path; for a list, all of them separated by commas.

    >>> describe_source(DatasetConfig(name="generated", options={"difficulty": "plain", "seed": 3}))
    'generated, seed 3, difficulty plain'
    """
    if isinstance(source, tuple):
        return ", ".join(map(describe_source, source))
    options = source.given_options() if isinstance(source, DatasetConfig) else {}
    return f"{source_name(source)}{''.join(f', {key} {value}' for key, value in options.items())}"


class ViewConfig(Config):
    """Settings of random views of scenes."""

    scale: tuple[Fraction, Fraction] = (0.2, 1.0)
    """Area of a crop, as a fraction of the image's."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """Width of a crop divided by its height."""
    flip: UnitInterval = 0.5
    """Probability of a horizontal flip."""
    overflow: InstanceOverflow = "ignore"
    """Replacement of objects whose id exceeds the model's largest: unlabelled pixels or background."""

    def build_training_view(self, **view_options: Any) -> "c2fmae.data.transforms.RandomView":
        """Return the transform that crops random views. `view_options` are its other arguments, such as the size."""
        from c2fmae.data.transforms import RandomView

        return RandomView(scale=self.scale, ratio=self.ratio, flip=self.flip, overflow=self.overflow, **view_options)


class LoaderConfig(Config):
    """Settings of the processes that load training samples."""

    repeats: PositiveInt = 1
    """Views of each scene in a batch."""
    cache: Annotated[bool, RESUME_SAFE] = False
    """Store scenes in memory after their first use: for small sets that are slow to generate or decode."""
    workers: Annotated[WorkerCount, RESUME_SAFE] = None
    """Loader processes for each training process; by default, one for each of its cores, up to 16. With 0, the training
    process loads batches itself, between steps."""
    prefetch: Annotated[int, Field(ge=1), RESUME_SAFE] = 2
    """Batches that each worker prepares in advance."""
    on_broken: Literal["skip", "error"] = "skip"
    """Skip samples that cannot be read, or raise an error."""
    max_broken: UnitInterval = 0.01
    """Fraction of the samples, over all processes, that may be skipped before the run fails."""

    @property
    def num_workers(self) -> int:
        """The number of loader processes for this training process."""
        from c2fmae.core.cores import resolve_num_workers

        return resolve_num_workers(self.workers)

    def cache_scenes(self, scenes: "c2fmae.data.scenes.Scenes") -> "c2fmae.data.scenes.Scenes":
        """Return the scenes, cached in memory if `cache` is set."""
        from c2fmae.data.cached import CachedScenes

        return CachedScenes(scenes) if self.cache else scenes

    def build_loader(
        self,
        scenes: "c2fmae.data.scenes.Scenes",
        view: "Callable[..., Any] | c2fmae.data.transforms.TransformSchedule",
        sampler: "c2fmae.data.sampler.Sampler",
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        finish: "Callable[[c2fmae.data.sampler.DataPosition, Any], Any] | None" = None,
        pin_memory: bool = False,
    ) -> "c2fmae.data.loader.SceneLoader":
        """Return a loader of views of the scenes.

        `collate` makes a batch of them, by default a `SceneBatch`, and `finish` works on the batch in the process that
        loads it.
        """
        from c2fmae.core.scene import SceneBatch
        from c2fmae.data.loader import SceneLoader

        return SceneLoader(
            scenes=scenes,
            transform=view,
            sampler=sampler,
            collate=collate or SceneBatch.stack,
            finish=finish,
            workers=self.num_workers,
            prefetch=self.prefetch,
            on_broken=self.on_broken,
            max_broken=self.max_broken,
            pin_memory=pin_memory,
        )

    def stream_training_batches(
        self,
        scenes: "c2fmae.data.scenes.Scenes",
        view: "Callable[..., Any] | c2fmae.data.transforms.TransformSchedule",
        plan: TrainingPlan,
        step: int,
        *,
        seed: int,
        rank: int,
        pin_memory: bool,
        collate: Callable[[list[Any]], Any] | None = None,
        finish: "Callable[[c2fmae.data.sampler.DataPosition, Any], Any] | None" = None,
        predict_sizes: "c2fmae.data.sampler.PredictSizes | None" = None,
    ) -> "c2fmae.data.loader.BatchStream[Any]":
        """Return the batches of one process, starting at a step. The batch of a step is the same for any start.

        With `predict_sizes`, such as a `SizePredictor`, a batch has samples of similar sizes.
        """
        from c2fmae.data.sampler import DataPosition, Sampler

        sampler = Sampler(
            num_samples=len(scenes),
            batch_size=plan.batch_size,
            seed=seed,
            repeats=self.repeats,
            rank=rank,
            world_size=plan.batch_size // plan.batch_size_per_rank,
            predict_sizes=predict_sizes,
        )
        epochs = -(-plan.steps // plan.steps_per_epoch)
        loader = self.build_loader(scenes, view, sampler, collate=collate, finish=finish, pin_memory=pin_memory)
        return loader.stream_batches(epochs, DataPosition(*divmod(step, plan.steps_per_epoch)))

    def check_broken(self, count: int, total: int) -> None:
        """Raise a `UserError` if more samples are broken, over all processes, than may be skipped."""
        if count > self.max_broken * total:
            raise UserError(
                f"data.max_broken: {count} of {total} samples are broken, more than the {self.max_broken:.2%} that may "
                "be skipped. List them with `c2fmae data check`"
            )


class LoadingConfig(LoaderConfig, ViewConfig):  # in this order YAML begins with the views
    """Settings of training views and of the processes that load them."""


class SourcesConfig(Config):
    """Training scenes and held-out scenes."""

    train: DataSourceOption | None = None
    """Training scenes: a folder, shards, a pattern of shards, a registered data set, or a list of these."""
    held_out: (
        Annotated[DatasetConfig | str | tuple[DatasetConfig | str, ...] | float, BeforeValidator(parse_held_out)] | None
    ) = None
    """Scenes that are never trained on, for losses during training: a source, or a fraction of the training scenes,
    such as 0.1. Those with the smallest SHA-256 digests of their keys are held out."""
    held_out_samples: PositiveInt = 1024
    """Largest number of held-out scenes, evenly spaced. They are stored in memory."""


class DataConfig(LoadingConfig, SourcesConfig):  # in this order YAML begins with the sources
    """Training scenes, held-out scenes, and how they are loaded."""

    @classmethod
    def migrate(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return values in the current format."""
        return migrate_data(values)

    def open_training(self, granularities: tuple[str, ...]) -> "c2fmae.data.scenes.Scenes":
        """Return the training scenes."""
        if self.train is None:
            raise UserError("data.train: is required. Set it with --data PATH, or use --data generated")
        return self.cache_scenes(self._split_training(granularities)[0])

    def open_held_out(self, granularities: tuple[str, ...]) -> "c2fmae.data.scenes.Scenes | None":
        """Return the held-out scenes, if there are any."""
        if self.held_out is None:
            return None
        if isinstance(self.held_out, float):
            return self._split_training(granularities)[1]
        return _open_source("data.held_out", self.held_out, granularities)

    def _split_training(
        self, granularities: tuple[str, ...]
    ) -> "tuple[c2fmae.data.scenes.Scenes, c2fmae.data.scenes.Scenes | None]":
        """Return the training scenes without those that are held out, and these if `held_out` is a fraction."""
        from c2fmae.data.held_out import split_held_out

        assert self.train is not None
        scenes = _open_source("data.train", self.train, granularities)
        return split_held_out(scenes, self.held_out) if isinstance(self.held_out, float) else (scenes, None)

    def build_held_out_view(self, **view_options: Any) -> "c2fmae.data.transforms.CentralView":
        """Return the transform that crops held-out scenes."""
        from c2fmae.data.transforms import CentralView

        return CentralView(overflow=self.overflow, **view_options)


def _open_source(key: str, source: DataSourceOption, granularities: tuple[str, ...]) -> "c2fmae.data.scenes.Scenes":
    from c2fmae.data.sources import open_scenes

    try:
        return open_scenes(source, granularities=granularities)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
