"""Options and functions of the commands that train a model on each backbone: `eval finetune`, `segment`, `detect`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, cast

import typer
from c2fmae_cli.eval_run import (
    AllowMissingOption,
    EmaOption,
    LimitOption,
    RecomputeOption,
    SetOption,
    SourcesArgument,
    StepOption,
    is_finished,
    is_run_of_kind,
    run_and_print,
    update_run_reports,
)
from c2fmae_cli.options import BatchSizeOption, EpochsOption, LearningRateOption, StepsOption, training_overrides
from c2fmae_cli.pretrain import quote_yaml

from c2fmae.core.errors import UserError
from c2fmae.core.log import is_main_process
from c2fmae.core.text import slugify

if TYPE_CHECKING:
    from c2fmae.eval.evaluation import ModelUnderTest
    from c2fmae.eval.results import EvaluationResult
    from c2fmae.eval.training_evaluation import RetestableEvaluation, TrainingEvaluation

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


def print_estimates(evaluation: "TrainingEvaluation", models: "Iterable[ModelUnderTest]") -> None:
    """Take a few steps of each run, and print what the whole run needs."""
    from c2fmae.core.distributed import init_distributed
    from c2fmae.measure import measure_run

    configs = {model.output_dir: evaluation.build_config(model) for model in models}
    with init_distributed(next(iter(configs.values())).training.device) as world:
        for run_dir, config in configs.items():
            estimate = measure_run(evaluation.get_build_function()(config, world), run_dir)
            if is_main_process():
                print(f"{run_dir}:\n{estimate}\nnext: the same command without --dry-run")


def make_training_command(name: str, *, summary: str, data_help: str, recipes: str) -> Callable[..., None]:
    """Return the command of an evaluation whose runs can be tested again."""

    def run(
        sources: SourcesArgument,
        data: Annotated[str | None, typer.Option(help=data_help)] = None,
        test: Annotated[str | None, typer.Option(help="The test set, if --data does not contain it.")] = None,
        limit: LimitOption = None,
        recipe: Annotated[
            str | None, typer.Option(metavar="NAME", help=f"{recipes}. By default, that of the ViT's size.")
        ] = None,
        untrained: UntrainedOption = False,
        out: RunDirOption = None,
        resume: ResumeOption = False,
        accept_changes: AcceptChangesOption = False,
        steps: StepsOption = None,
        epochs: EpochsOption = None,
        batch_size: BatchSizeOption = None,
        lr: LearningRateOption = None,
        step: StepOption = None,
        use_ema: EmaOption = False,
        allow_missing: AllowMissingOption = None,
        recompute: RecomputeOption = False,
        dry_run: DryRunOption = False,
        set_: SetOption = None,
    ) -> None:
        from c2fmae.eval.builtin import EVALUATIONS
        from c2fmae.eval.evaluation import LoadOptions, ModelUnderTest

        evaluation_class = cast("type[RetestableEvaluation]", EVALUATIONS.get(name))
        overrides = [
            f"data.{split}={quote_yaml(source)}"
            for split, source in evaluation_class.resolve_data_options(data, test).items()
        ]
        overrides += [f"data.limit={limit}"] if limit is not None else []
        overrides += training_overrides(steps, epochs, batch_size, lr)
        overrides += set_ or []
        is_run = data is None and len(sources) == 1 and is_run_of_kind(sources[0], evaluation_class.run_kind())
        is_test = is_run and not resume and _changes_only_the_test(overrides)
        if is_run:
            _check_run(sources[0], evaluation_class, overrides, is_test=is_test, resume=resume, dry_run=dry_run)
            unused = {"--recipe": recipe, "--untrained": untrained, "--out": out, "--allow-missing": allow_missing}
            unused_on_resume = {"--test": test, "--step": step, "--ema": use_ema}
            check_unused(sources[0], unused if is_test else {**unused, **unused_on_resume})
            options = LoadOptions(step=step, use_ema=use_ema)
            models = [ModelUnderTest(sources[0], Path(sources[0]), load_options=options)]
        else:
            models = list_models(
                sources,
                data,
                out,
                suffix=evaluation_class.run_kind(),
                include_untrained=untrained,
                step=step,
                use_ema=use_ema,
                allow_missing=allow_missing,
            )
        evaluation = evaluation_class(
            recipe=recipe, overrides=tuple(overrides), resume=resume, accept_changes=accept_changes, retest=is_test
        )
        if dry_run:
            print_estimates(evaluation, models)
            return
        _train_or_test(name, evaluation, models, recompute=recompute)

    run.__doc__ = f"""{summary}

    The same command works alone, under `torchrun` and under `srun`. With a finished run instead of a ViT, test the run
    again, without training; `--set testing.…` changes the protocol. On SIGTERM, a run saves a checkpoint and exits
    with 75.
    """
    return run


def _changes_only_the_test(overrides: Sequence[str]) -> bool:
    """Return whether all overrides are of the test."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    return all(
        key in ("data.test", "data.limit", "data.workers") or key.startswith(("testing.", "data.test.")) for key in keys
    )


def _check_run(
    source: str,
    evaluation_class: "type[RetestableEvaluation]",
    overrides: Sequence[str],
    *,
    is_test: bool,
    resume: bool,
    dry_run: bool,
) -> None:
    """Raise a `UserError` if a run cannot be tested or resumed with these options."""
    if not resume and not is_test:
        raise UserError(
            f"{source}: is a run of a {evaluation_class.trained_model}. Test it again with --set testing.…, resume it "
            "with --resume, or fine-tune from it with --data"
        )
    if resume and overrides and _changes_only_the_test(overrides) and is_finished(source):
        raise UserError(f"{source}: is finished. Test it by another protocol without --resume")
    if is_test and dry_run:
        raise UserError("--dry-run: estimates a training, but this command only tests a run. Leave it out")


def _train_or_test(
    name: str, evaluation: "RetestableEvaluation", models: "Sequence[ModelUnderTest]", *, recompute: bool
) -> None:
    """Train a model on each source, or test finished runs again, and print the results and what to do next."""
    results = train_and_print(name, evaluation, models, recompute=recompute)
    if not results:
        return
    dirs = [str(model.output_dir) for model in models]
    if evaluation.retest:
        update_run_reports(dirs)
    else:
        for path in dirs:
            print(f"wrote {path}: report.html, evaluations/{name}/classes.csv, and the {evaluation.trained_model}")
    print(f"next: c2fmae predict {quote(dirs[0])} IMAGES --out DIR")
