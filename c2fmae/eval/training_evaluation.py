"""Trainings on backbones as evaluations: the config of a model's run, and the result of the finished run."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from c2fmae.config.unseen_scenes import UnseenScenes
from c2fmae.core.experiment_config import ConfigHeader, ExperimentConfig, RunKind
from c2fmae.core.registry import Registry
from c2fmae.core.signals import TestStopped, catch_signals
from c2fmae.core.specs import BackboneSpec
from c2fmae.eval.data_config import TrainTestSets
from c2fmae.eval.evaluation import Evaluation, EvaluationStopped, ModelUnderTest, Outcome

if TYPE_CHECKING:
    import c2fmae.core.experiment
    import c2fmae.eval.results

log = logging.getLogger(__name__)

C = TypeVar("C", bound=ExperimentConfig)
D = TypeVar("D", bound=TrainTestSets)

_SOURCE_FIELDS = {"init", "from_scratch", "step", "average", "allow_missing"}  # fields of the model under test


@dataclass(frozen=True)
class TrainingRecipe(Generic[C]):
    """A function from a source of initial weights to a config, and a reference."""

    make: Callable[[str], C]
    reference: str


class TrainingEvaluation(Evaluation):
    """Train a model on each backbone, with a recipe, and evaluate it."""

    reuses_results: ClassVar[bool] = False  # a finished run is reused by `resume`
    run_config: ClassVar[type[ExperimentConfig]]
    """The config of a run."""
    command: ClassVar[str]
    """The name of the evaluation."""

    recipe: str | None = None
    """A recipe. By default, that of the ViT's size."""
    overrides: tuple[str, ...] = ()
    """Overrides of the recipe's config, as `key=value`."""
    resume: bool = False
    """Resume runs that exist."""
    accept_changes: bool = False
    """Resume them even though their config has changed."""

    @classmethod
    def setting_names(cls) -> list[str]:
        """Return the names of the settings for `--set`: the config of a run without its source."""
        return cls.name_settings(cls.run_config, {*ConfigHeader.model_fields, *_SOURCE_FIELDS})

    @classmethod
    @abstractmethod
    def recipes(cls) -> Registry[TrainingRecipe[Any]]:
        """Return the registry of recipes."""

    @classmethod
    @abstractmethod
    def choose_recipe(cls, spec: BackboneSpec, source: str) -> str:
        """Return the name of the recipe for a ViT."""

    @classmethod
    @abstractmethod
    def get_build_function(cls) -> "Callable[..., c2fmae.core.experiment.Experiment]":
        """Return the function that opens the data and builds the model of a config."""

    @classmethod
    def read_result(cls, run_dir: Path) -> "c2fmae.eval.results.EvaluationResult":
        """Return the stored result of a finished run."""
        from c2fmae.eval.results import load_result

        return load_result(run_dir / "evaluations" / cls.command)

    def adapt_config(self, config: Any, model: ModelUnderTest, spec: BackboneSpec) -> Any:
        """Return the config of a recipe, changed for a ViT."""
        del model, spec
        return config

    def build_config(self, model: ModelUnderTest) -> Any:
        """Return the config of a model's run, read from its directory if the source is the run itself."""
        key = f"{type(self).__name__} {model.name} {self.model_dump_json()}"
        if key not in model.memo:
            if model.output_dir == Path(model.source):
                config_path = model.output_dir / "config.yaml"
                model.memo[key] = self.run_config.from_yaml(config_path, self.overrides)
            else:
                model.memo[key] = self._build_from_recipe(model)
        return model.memo[key]

    def run_models(self, models: Sequence[ModelUnderTest], *, recompute: bool = False) -> Iterator[Outcome]:
        """Train in the output directory of each model, and yield its stored result."""
        from c2fmae.core.run_dir import RunDir
        from c2fmae.eval.training_experiment import train_in_run_dir

        del recompute
        for model in models:
            previous_state = RunDir(model.output_dir).read_state() or {}
            outcome = train_in_run_dir(
                self.get_build_function(),
                self.build_config(model),
                model.output_dir,
                model.world,
                resume=self.resume,
                accept_changes=self.accept_changes,
            )
            if outcome.status != "finished":
                message = (
                    f"{outcome.status} at step {outcome.step}: {model.output_dir}\nnext: the same command with --resume"
                )
                raise EvaluationStopped(message, exit_code=outcome.exit_code)
            model.world.barrier()  # until the main process has written the result
            result = self.read_result(model.output_dir)
            was_finished = (previous_state.get("status"), previous_state.get("step")) == ("finished", outcome.step)
            yield Outcome(result.metrics, stored=replace(result, is_new=not was_finished))

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Return the protocol of the finished run."""
        return self.read_result(model.output_dir).protocol

    def _build_from_recipe(self, model: ModelUnderTest) -> Any:
        from c2fmae.models.backbones.load import read_source

        options, name = model.load_options, self.recipe
        _, contents = read_source(
            model.source, step=options.step, use_ema=options.use_ema, image_size=None, num_heads=None
        )
        if name is None:
            name = self.choose_recipe(contents.spec, model.source)
        recipe = self.recipes().get(name)
        if model.world.is_main:
            log.info("%s: recipe %s, from %s. Choose another with --recipe", model.name, name, recipe.reference)
        config = recipe.make(model.source)
        config = without_layer_decay(config) if model.is_untrained else config
        values = {
            **self.adapt_config(config, model, contents.spec).model_dump(),
            "from_scratch": model.is_untrained,
            "step": options.step,
            "average": options.use_ema,
            "allow_missing": options.allow_missing,
        }
        filled: Any = self.run_config.from_dict(values, self.overrides, source=f"eval {self.command}")
        return filled.model_copy(update={"data": fill_generated_sets(filled.data, model)})


class RetestableEvaluation(TrainingEvaluation):
    """Train a model on each backbone, or test finished runs again."""

    trained_model: ClassVar[str]
    """What is trained: segmenter or detector."""

    retest: bool = False
    """Test finished runs again, with overrides of `testing`, instead of training."""

    @classmethod
    def run_kind(cls) -> RunKind:
        """Return the kind of the runs."""
        kind: RunKind = cls.run_config.model_fields["kind"].default
        return kind

    @classmethod
    def resolve_data_options(cls, data: str | None, test: str | None) -> dict[str, Any]:
        """Return the settings of the run's data that --data and --test stand for."""
        data_config: Any = cls.run_config.model_fields["data"].annotation
        options: dict[str, Any] = data_config.resolve_data_options(data, test)
        return options

    @classmethod
    @abstractmethod
    def get_retest_function(cls) -> "Callable[..., c2fmae.eval.results.EvaluationResult]":
        """Return the function that tests the model of a finished run, or returns the stored result."""

    def run_models(self, models: Sequence[ModelUnderTest], *, recompute: bool = False) -> Iterator[Outcome]:
        """Train each model, or test finished runs again, and yield the result."""
        if not self.retest:
            yield from super().run_models(models, recompute=recompute)
            return
        for model in models:
            options = model.load_options
            config = self.build_config(model)
            with catch_signals() as stop:
                try:
                    result = self.get_retest_function()(
                        config,
                        model.output_dir,
                        model.world,
                        step=options.step,
                        use_ema=options.use_ema,
                        recompute=recompute,
                    )
                except TestStopped as error:
                    message = (
                        f"saved-on-signal: {model.output_dir}, the predictions so far\n"
                        f"next: the same command{' without --recompute' if recompute else ''}"
                    )
                    raise EvaluationStopped(message, exit_code=stop.exit_code) from error
            yield Outcome(result.metrics, stored=result)


def without_layer_decay(config: C) -> C:
    """Return the config without layer decay, for training from scratch."""
    training = config.training.model_copy(update={"layer_decay": 1.0})
    return config.model_copy(update={"training": training})


def fill_generated_sets(data: D, model: ModelUnderTest) -> D:
    """Return the data with generated scenes like those of the source, which the run's config then describes."""
    from c2fmae.eval.datasets import fill_generated_set

    unseen = model.find_unseen_scenes({"data.train": data.train, "data.test": data.test})
    if unseen is None or unseen == UnseenScenes():
        return data
    if unseen.seed == UnseenScenes.seed:  # the default seeds are not stored, so that earlier runs resume
        filled = data.train and unseen.fill(data.train), data.test and unseen.fill(data.test)
    else:
        filled = (
            data.train and fill_generated_set("train", data.train, unseen),
            data.test and fill_generated_set("test", data.test, unseen),
        )
    return data.model_copy(update={"train": filled[0], "test": filled[1]})
