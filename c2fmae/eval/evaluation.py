"""The interface of evaluations: frozen configs that compute metrics of models and describe their protocol.

Evaluations are registered by name in `EVALUATIONS`; other packages can register their own. They are imported without
torch: `run` imports the modules that compute.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from c2fmae.config.data import DataSourceOption
from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.registry import Registry
from c2fmae.eval.metrics import Metric

if TYPE_CHECKING:
    import c2fmae.config.method
    import c2fmae.config.unseen_scenes
    import c2fmae.core.distributed
    import c2fmae.eval.results
    import c2fmae.eval.robustness.image_classifier
    import c2fmae.models.backbones

ModelKind = Literal["backbone", "classifier", "method"]
"""A ViT, an image classifier, or a ViT with the method that pre-trains it."""

Precision = Literal["fp32", "bf16"]


def _single_process() -> "c2fmae.core.distributed.World":
    from c2fmae.core.distributed import World

    return World()


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How weights are loaded from a source."""

    step: int | None = None
    """Step of a run's checkpoint. By default, the newest."""
    use_ema: bool = False
    """Load a run's averaged weights."""
    allow_missing: tuple[str, ...] = ()
    """Tensors that the source may lack, by name or pattern."""


@dataclass(frozen=True)
class ModelUnderTest:
    """A source of weights, and the models that evaluations need from it, loaded on first use."""

    source: str
    """A run, a checkpoint, `timm:NAME` or any other source that can be loaded."""
    output_dir: Path
    """Directory for results and caches, the same for all processes."""
    world: "c2fmae.core.distributed.World" = field(default_factory=_single_process)
    load_options: LoadOptions = LoadOptions()
    is_untrained: bool = False
    """Whether the model has the source's architecture, but new weights."""
    memo: dict[str, Any] = field(default_factory=dict, compare=False)
    """Objects to reuse, such as opened data sets."""
    compared_sources: tuple[str, ...] = ()
    """Sources of all models that are evaluated on the same data. By default, only this one."""

    @classmethod
    def in_memory(cls, source: str, output_dir: Path, *, world: Any = None, **loaded: Any) -> "ModelUnderTest":
        """Return a model that has been loaded already: `backbone=…`, `classifier=…` or `method=…`."""
        model = cls(source, output_dir, world or _single_process())
        vars(model).update(loaded)
        return model

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"untrained {self.source}" if self.is_untrained else self.source

    def with_new_weights(self) -> "ModelUnderTest":
        """Return the same architecture with new weights."""
        return replace(self, is_untrained=True, memo={})

    def find_unseen_scenes(
        self, sets: Mapping[str, DataSourceOption | None]
    ) -> "c2fmae.config.unseen_scenes.UnseenScenes | None":
        """Return the scenes that `generated` stands for in these sets, by their settings."""
        from c2fmae.config.unseen_scenes import find_unseen_scenes

        is_quiet = self.is_untrained or not self.world.is_main
        return find_unseen_scenes(self.compared_sources or (self.source,), sets, is_quiet=is_quiet)

    @cached_property
    def backbone(self) -> "c2fmae.models.backbones.Backbone":
        """The ViT."""
        from c2fmae.models.backbones import create_untrained_backbone, load_backbone

        options = self.load_options
        backbone = load_backbone(
            self.source, step=options.step, use_ema=options.use_ema, allow_missing=options.allow_missing
        )
        return create_untrained_backbone(backbone.spec) if self.is_untrained else backbone

    @cached_property
    def classifier(self) -> "c2fmae.eval.robustness.image_classifier.ImageClassifier":
        """The classifier of images."""
        from c2fmae.eval.robustness.image_classifier import load_image_classifier

        return load_image_classifier(self.source, step=self.load_options.step, use_ema=self.load_options.use_ema)

    @cached_property
    def method(self) -> "c2fmae.config.method.MethodConfig | None":
        """The method of a pre-training run; None for any other source."""
        from c2fmae.config.migrations import migrate_pretraining
        from c2fmae.config.pretrain import PretrainConfig
        from c2fmae.core.run_dir import RunDir
        from c2fmae.core.run_info import read_run_info

        if not RunDir(Path(self.source)).is_started:
            return None
        info = read_run_info(Path(self.source))
        if info.kind != "pretraining":
            return None
        values = {"method": migrate_pretraining(info.config)["method"]}
        return PretrainConfig.from_dict(values, source=self.source).method

    @cached_property
    def digest(self) -> str:
        """The digest of the backbone: its spec and its weights."""
        from c2fmae.eval.cache import compute_weights_digest

        return compute_weights_digest(self.backbone)

    def identify_positions(self, image_size: tuple[int, int]) -> dict[str, str]:
        """Return how positions are computed, if these images have another size than those of training.

        Earlier versions computed other positions for them, so their results and cached features differ.
        """
        return {"positions": "stretched"} if self.backbone.stretches_positions(image_size) else {}


@dataclass(frozen=True)
class Outcome:
    """The output of an evaluation for one model."""

    metrics: tuple[Metric, ...]
    details: Any = None
    """Data that is not stored, for the evaluation's own tables and pages."""
    stored: "c2fmae.eval.results.EvaluationResult | None" = None
    """The result, if the evaluation wrote it itself."""


class EvaluationStopped(Exception):  # noqa: N818 - not an error
    """An evaluation was stopped by a signal, after it had saved its state. The message names the next command."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Evaluation(Config):
    """A protocol and its settings. Results do not depend on the number of processes."""

    model_kind: ClassVar[ModelKind] = "backbone"
    """The kind of model that is evaluated."""
    protocol_version: ClassVar[int] = 1
    """Increase it when the same settings give other numbers, so that stored results are recomputed."""
    shares_work: ClassVar[bool] = False
    """Whether `run_models` is called once with all models, because they share work, or once for each model."""
    reuses_results: ClassVar[bool] = True
    """Whether a stored result of the same settings, weights and data is reused."""
    neutral_fields: ClassVar[frozenset[str]] = frozenset({"workers"})
    """Fields that do not change the result, or whose effect is part of `identify_inputs`."""
    limit_field: ClassVar[str | None] = None
    """The setting of the number of images, which the option --limit sets."""
    cache_name: ClassVar[str | None] = None
    """Directory below `output_dir` with partial results, from which an interrupted evaluation resumes."""
    option_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields with a command-line option of their own."""

    @classmethod
    def resolve_data_options(cls, data: str | None, test: str | None) -> dict[str, Any]:
        """Return the settings that the options --data and --test stand for."""
        if test is not None or (data is not None and "data" not in cls.model_fields):
            option = "--test" if test is not None else "--data"
            raise UserError(f"{option}: is not an option of this evaluation. Leave it out")
        return {} if data is None else {"data": data}

    @classmethod
    def resolve_limit(cls, limit: int | None) -> dict[str, Any]:
        """Return the settings that the option --limit stands for."""
        if limit is None:
            return {}
        if cls.limit_field is None:
            raise UserError("--limit: is not an option of this evaluation. Leave it out")
        return {cls.limit_field: limit}

    @classmethod
    def setting_names(cls) -> list[str]:
        """Return the names of the settings for `--set`."""
        return cls.name_settings(cls, cls.option_fields)

    @staticmethod
    def name_settings(config_class: type[Config], hidden: Collection[str] = ()) -> list[str]:
        """Return the names of a config's fields except the hidden ones; a nested config is `name.…`."""
        return [
            f"{name}.…" if isinstance(info.annotation, type) and issubclass(info.annotation, Config) else name
            for name, info in config_class.model_fields.items()
            if name not in hidden
        ]

    def identity_settings(self) -> dict[str, Any]:
        """Return the settings that a result depends on."""
        return self.model_dump(mode="json", exclude=set(self.neutral_fields))

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Compute the metrics of one model, the same in every process."""
        raise NotImplementedError

    def run_models(self, models: Sequence[ModelUnderTest], *, recompute: bool = False) -> Iterator[Outcome]:
        """Yield the outcome of each model in order. Evaluations whose models share work override this.

        With `recompute`, cached predictions are not used.
        """
        del recompute
        for model in models:
            yield Outcome(tuple(self.run(model)))

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Return a few sentences on how the metrics are computed, so that readers can compare them with others."""
        raise NotImplementedError

    def identify_inputs(self, model: ModelUnderTest) -> dict[str, str]:
        """Return digests of the inputs other than settings and weights, such as data."""
        del model
        return {}

    def format_results(self, results: "Sequence[c2fmae.eval.results.EvaluationResult]") -> list[str]:
        """Return the results of several models as lines of text."""
        from c2fmae.eval.results import format_results

        return format_results(results)

    def write_comparison(
        self, results: "Sequence[c2fmae.eval.results.EvaluationResult]", output_dir: Path | None
    ) -> list[Path]:
        """Write files that compare the models, and return their paths; `output_dir` is the user's choice, if any."""
        del results, output_dir
        return []


EVALUATIONS: Registry[type[Evaluation]] = Registry("evaluation")
