"""Fine-tuning as an evaluation: the accuracy of a classifier on a pre-trained ViT."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from c2fmae.config.unseen_scenes import UnseenScenes
from c2fmae.core.experiment_config import ConfigHeader
from c2fmae.eval.classification.config import ClassificationDataConfig, FinetuneConfig
from c2fmae.eval.evaluation import EVALUATIONS, Evaluation, EvaluationStopped, ModelUnderTest, Outcome

log = logging.getLogger(__name__)

_SOURCE_FIELDS = {"init", "from_scratch", "step", "average", "allow_missing"}  # fields of the model under test


@EVALUATIONS.register("finetune")
class FinetuneEvaluation(Evaluation):
    """Fine-tune ViTs as image classifiers, with the recipes of the papers or your own."""

    reuses_results: ClassVar[bool] = False  # a finished run is reused by `finetune`

    recipe: str | None = None
    """A fine-tuning recipe. By default, that of the ViT's size."""
    overrides: tuple[str, ...] = ()
    """Overrides of the recipe's config, as `key=value`."""
    resume: bool = False
    """Resume runs that exist."""
    accept_changes: bool = False
    """Resume them even though their config has changed."""

    @classmethod
    def setting_names(cls) -> list[str]:
        """Return the names of the settings for `--set`: the config of a run without its source."""
        hidden = {*ConfigHeader.model_fields, *_SOURCE_FIELDS}
        return cls.name_settings(FinetuneConfig, hidden)

    def build_config(self, model: ModelUnderTest) -> FinetuneConfig:
        """Return the config of a model's run, read from its directory if the source is the run itself."""
        key = f"finetuning {model.name} {self.model_dump_json()}"
        if key not in model.memo:
            if model.output_dir == Path(model.source):
                config_path = model.output_dir / "config.yaml"
                model.memo[key] = FinetuneConfig.from_yaml(config_path, self.overrides)
            else:
                model.memo[key] = self._build_from_recipe(model)
        config: FinetuneConfig = model.memo[key]
        return config

    def run_models(self, models: Sequence[ModelUnderTest], *, recompute: bool = False) -> Iterator[Outcome]:
        """Fine-tune in the output directory of each model, and yield its stored result."""
        from c2fmae.core.run_dir import RunDir
        from c2fmae.eval.classification.experiment import finetune
        from c2fmae.eval.classification.result import read_finetune_result

        del recompute
        for model in models:
            previous_state = RunDir(model.output_dir).read_state() or {}
            outcome = finetune(
                self.build_config(model),
                model.output_dir,
                model.world,
                resume=self.resume,
                accept_changes=self.accept_changes,
            )
            if outcome.status != "finished":
                message = f"{outcome.status} at step {outcome.step}: {model.output_dir}"
                raise EvaluationStopped(message, exit_code=outcome.exit_code)
            model.world.barrier()  # until the main process has written the result
            result = read_finetune_result(model.output_dir)
            was_finished = (previous_state.get("status"), previous_state.get("step")) == ("finished", outcome.step)
            yield Outcome(result.metrics, stored=replace(result, is_new=not was_finished))

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Return the protocol of the finished run."""
        from c2fmae.eval.classification.result import read_finetune_result

        return read_finetune_result(model.output_dir).protocol

    def _build_from_recipe(self, model: ModelUnderTest) -> FinetuneConfig:
        from c2fmae.eval.classification.recipes import (
            FINETUNE_RECIPES,
            choose_recipe,
            read_pretrain_epochs,
            without_layer_decay,
            without_rand_augment,
        )
        from c2fmae.models.backbones.load import read_source

        options, name = model.load_options, self.recipe
        _, contents = read_source(
            model.source, step=options.step, use_ema=options.use_ema, image_size=None, num_heads=None
        )
        if name is None:
            name = choose_recipe(contents.spec, read_pretrain_epochs(model.source))
        recipe = FINETUNE_RECIPES.get(name)
        if model.world.is_main:
            log.info("%s: recipe %s, from %s. Choose another with --recipe", model.name, name, recipe.reference)
        config = recipe.make(model.source)
        config = without_layer_decay(config) if model.is_untrained else config
        channels = contents.spec.channels.get("rgb", 3)
        if channels != 3 and config.data.rand_augment is not None:
            config = without_rand_augment(config)
            if model.world.is_main:
                log.info("%s: without RandAugment, which is for 3 channels and not for %d", model.name, channels)
        values = {
            **config.model_dump(),
            "from_scratch": model.is_untrained,
            "step": options.step,
            "average": options.use_ema,
            "allow_missing": options.allow_missing,
        }
        config = FinetuneConfig.from_dict(values, self.overrides, source="eval finetune")
        return config.model_copy(update={"data": _fill_generated_sets(config.data, model)})


def _fill_generated_sets(data: ClassificationDataConfig, model: ModelUnderTest) -> ClassificationDataConfig:
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
