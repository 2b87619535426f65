"""`c2fmae eval finetune …`: fine-tune backbones as classifiers and test them."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from c2fmae_cli.eval_run import (
    AllowMissingOption,
    EmaOption,
    LimitOption,
    SetOption,
    SourcesArgument,
    StepOption,
    is_finetuned_run,
    run_and_print,
)
from c2fmae_cli.options import BatchSizeOption, EpochsOption, LearningRateOption, StepsOption, training_overrides
from c2fmae_cli.pretrain import quote_yaml

from c2fmae.core.errors import UserError
from c2fmae.core.log import is_main_process
from c2fmae.core.text import slugify

if TYPE_CHECKING:
    from c2fmae.eval.classification.evaluation import FinetuneEvaluation
    from c2fmae.eval.evaluation import ModelUnderTest


def finetune(
    sources: SourcesArgument,
    data: Annotated[
        str | None,
        typer.Option(
            help="Labelled images: a folder with a training and a test set (with --test, the training set), or "
            "`generated`."
        ),
    ] = None,
    test: Annotated[str | None, typer.Option(help="The test set, if --data does not contain it.")] = None,
    limit: LimitOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="b-400, b-1600, s, l, small, … By default, that of the ViT's size."),
    ] = None,
    granularities: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Inputs: rgb by default, or images and maps.")
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Train the first source's ViT from scratch too, for comparison.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Run directory or, for several sources, its parent. By default, runs/….")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume runs that exist, and start the others.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume although the config has changed.")
    ] = False,
    steps: StepsOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    lr: LearningRateOption = None,
    step: StepOption = None,
    use_ema: EmaOption = False,
    allow_missing: AllowMissingOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take a few steps and estimate the whole run. Nothing is written.")
    ] = False,
    set_: SetOption = None,
) -> None:
    """Fine-tune ViTs as image classifiers. The same command works alone, under `torchrun` and under `srun`.

    `export` and `eval robustness` accept the run directory. On SIGTERM, the run saves a checkpoint and exits with 75.
    """
    from c2fmae.core.distributed import TIMEOUT
    from c2fmae.eval.classification.config import ClassificationDataConfig
    from c2fmae.eval.classification.evaluation import FinetuneEvaluation
    from c2fmae.eval.evaluation import LoadOptions, ModelUnderTest

    sets = ClassificationDataConfig.resolve_data_options(data, test)
    overrides = [f"data.{split}={quote_yaml(source)}" for split, source in sets.items()]
    overrides += [f"data.granularities=[{granularities}]"] if granularities else []
    overrides += [f"data.limit={limit}"] if limit is not None else []
    overrides += training_overrides(steps, epochs, batch_size, lr)
    evaluation = FinetuneEvaluation(
        recipe=recipe, overrides=(*overrides, *(set_ or [])), resume=resume, accept_changes=accept_changes
    )
    if data is None and len(sources) == 1 and is_finetuned_run(sources[0]):
        unused: dict[str, object] = {
            "--test": test,
            "--recipe": recipe,
            "--granularities": granularities,
            "--untrained": untrained,
        }
        unused |= {"--out": out, "--step": step, "--ema": use_ema, "--allow-missing": allow_missing}
        _check_resumable(sources[0], resume=resume, unused=[name for name, value in unused.items() if value])
        models = [ModelUnderTest(sources[0], Path(sources[0]))]
    else:
        options = LoadOptions(step=step, use_ema=use_ema, allow_missing=tuple(allow_missing or ()))
        models = [
            ModelUnderTest(source, Path(), load_options=options, compared_sources=tuple(sources)) for source in sources
        ]
        models += [models[0].with_new_weights()] if untrained else []
        models = [replace(model, output_dir=_choose_run_dir(model, data, out, len(models) > 1)) for model in models]
        for index, model in enumerate(models):
            if model.output_dir in [other.output_dir for other in models[:index]]:
                raise UserError(
                    f"{model.source}: its run directory {model.output_dir} is also that of another source. Fine-tune "
                    "them one by one"
                )
    if dry_run:
        _print_estimates(evaluation, models)
        return
    results, _ = run_and_print(
        "finetune",
        evaluation,
        lambda world: (replace(model, world=world) for model in models),
        device=evaluation.build_config(models[0]).training.device,
        timeout=TIMEOUT,
    )
    if results:
        dirs = [str(model.output_dir) for model in models]
        for path in dirs:
            print(f"wrote {path}: report.html, evaluations/finetune/classes.csv, and the classifier")
        print(f"next: c2fmae eval robustness {' '.join(map(quote, dirs))} --custom NAME=DIR")


def _check_resumable(source: str, *, resume: bool, unused: list[str]) -> None:
    if not resume:
        raise UserError(f"{source}: is a fine-tuned run. Resume it with --resume, or fine-tune from it with --data")
    if unused:
        raise UserError(
            f"{source}: a resumed run has its own config, so {unused[0]} has no effect. Use --set to change settings"
        )


def _choose_run_dir(model: "ModelUnderTest", data: str | None, out: Path | None, is_nested: bool) -> Path:
    name = slugify(model.source, *(["scratch"] if model.is_untrained else []))
    if out is not None:
        return out / name if is_nested else out
    return Path("runs") / slugify(name, "finetuned", data or "")


def _print_estimates(evaluation: "FinetuneEvaluation", models: "Iterable[ModelUnderTest]") -> None:
    from c2fmae.core.distributed import init_distributed
    from c2fmae.eval.classification.experiment import build_finetuning
    from c2fmae.measure import measure_run

    configs = {model.output_dir: evaluation.build_config(model) for model in models}
    with init_distributed(next(iter(configs.values())).training.device) as world:
        for run_dir, config in configs.items():
            estimate = measure_run(build_finetuning(config, world), run_dir)
            if is_main_process():
                print(f"{run_dir}:\n{estimate}\nnext: the same command without --dry-run")
