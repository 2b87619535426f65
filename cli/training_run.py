"""Options and functions of the commands that train a model on each backbone: `eval finetune` and `eval segment`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from c2fmae_cli.eval_run import run_and_print

from c2fmae.core.errors import UserError
from c2fmae.core.log import is_main_process
from c2fmae.core.text import slugify

if TYPE_CHECKING:
    from c2fmae.core.experiment import Experiment
    from c2fmae.eval.evaluation import ModelUnderTest
    from c2fmae.eval.results import EvaluationResult
    from c2fmae.eval.training_evaluation import TrainingEvaluation

UntrainedOption = Annotated[
    bool, typer.Option("--untrained", help="Train the first source's ViT from scratch too, for comparison.")
]
RunDirOption = Annotated[
    Path | None, typer.Option(help="Run directory or, for several sources, its parent. By default, runs/….")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Resume runs that exist, and start the others.")]
AcceptChangesOption = Annotated[bool, typer.Option("--accept-changes", help="Resume although the config has changed.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Take a few steps and estimate the whole run. Nothing is written.")
]


def list_models(
    sources: Sequence[str],
    data: str | None,
    out: Path | None,
    *,
    suffix: str,
    include_untrained: bool,
    step: int | None,
    use_ema: bool,
    allow_missing: Sequence[str] | None,
) -> "list[ModelUnderTest]":
    """Return a model for each source, each with a run directory of its own."""
    from c2fmae.eval.evaluation import LoadOptions, ModelUnderTest

    options = LoadOptions(step=step, use_ema=use_ema, allow_missing=tuple(allow_missing or ()))
    models = [
        ModelUnderTest(source, Path(), load_options=options, compared_sources=tuple(sources)) for source in sources
    ]
    models += [models[0].with_new_weights()] if include_untrained else []
    models = [replace(model, output_dir=_choose_run_dir(model, data, out, suffix, len(models) > 1)) for model in models]
    for index, model in enumerate(models):
        if model.output_dir in [other.output_dir for other in models[:index]]:
            raise UserError(
                f"{model.source}: its run directory {model.output_dir} is also that of another source. Fine-tune "
                "them one by one"
            )
    return models


def _choose_run_dir(model: "ModelUnderTest", data: str | None, out: Path | None, suffix: str, is_nested: bool) -> Path:
    name = slugify(model.source, *(["scratch"] if model.is_untrained else []))
    if out is not None:
        return out / name if is_nested else out
    return Path("runs") / slugify(name, suffix, data or "")


def check_unused(source: str, unused: Mapping[str, object]) -> None:
    """Raise a `UserError` for an option that has no effect on a run that exists."""
    if options := [name for name, value in unused.items() if value]:
        raise UserError(
            f"{source}: a resumed run has its own config, so {options[0]} has no effect. Use --set to change settings"
        )


def train_and_print(
    name: str, evaluation: "TrainingEvaluation", models: "Sequence[ModelUnderTest]", *, recompute: bool = False
) -> "list[EvaluationResult]":
    """Train a model on each source, print the results and return them; nothing in other ranks."""
    from c2fmae.core.distributed import TIMEOUT

    results, _ = run_and_print(
        name,
        evaluation,
        lambda world: (replace(model, world=world) for model in models),
        recompute=recompute,
        device=evaluation.build_config(models[0]).training.device,
        timeout=TIMEOUT,
    )
    return results


def print_estimates(
    evaluation: "TrainingEvaluation",
    models: "Iterable[ModelUnderTest]",
    build_experiment: "Callable[[Any, Any], Experiment]",
) -> None:
    """Take a few steps of each run, and print what the whole run needs."""
    from c2fmae.core.distributed import init_distributed
    from c2fmae.measure import measure_run

    configs = {model.output_dir: evaluation.build_config(model) for model in models}
    with init_distributed(next(iter(configs.values())).training.device) as world:
        for run_dir, config in configs.items():
            estimate = measure_run(build_experiment(config, world), run_dir)
            if is_main_process():
                print(f"{run_dir}:\n{estimate}\nnext: the same command without --dry-run")
