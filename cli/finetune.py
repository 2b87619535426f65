"""`c2fmae eval finetune …`: fine-tune backbones as classifiers and test them."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from c2fmae_cli.eval_run import (
    AllowMissingOption,
    EmaOption,
    LimitOption,
    SetOption,
    SourcesArgument,
    StepOption,
    is_run_of_kind,
)
from c2fmae_cli.options import BatchSizeOption, EpochsOption, LearningRateOption, StepsOption, training_overrides
from c2fmae_cli.pretrain import quote_yaml
from c2fmae_cli.training_run import (
    AcceptChangesOption,
    DryRunOption,
    ResumeOption,
    RunDirOption,
    UntrainedOption,
    check_unused,
    list_models,
    print_estimates,
    train_and_print,
)

from c2fmae.core.errors import UserError


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
    dry_run: DryRunOption = False,
    set_: SetOption = None,
) -> None:
    """Fine-tune ViTs as image classifiers.

    The same command works alone, under `torchrun` and under `srun`. `export` and `eval robustness` accept the run
    directory. On SIGTERM, the run saves a checkpoint and exits with 75.
    """
    from c2fmae.eval.classification.config import ClassificationDataConfig
    from c2fmae.eval.classification.evaluation import FinetuneEvaluation
    from c2fmae.eval.evaluation import ModelUnderTest

    sets = ClassificationDataConfig.resolve_data_options(data, test)
    overrides = [f"data.{split}={quote_yaml(source)}" for split, source in sets.items()]
    overrides += [f"data.granularities=[{granularities}]"] if granularities else []
    overrides += [f"data.limit={limit}"] if limit is not None else []
    overrides += training_overrides(steps, epochs, batch_size, lr)
    evaluation = FinetuneEvaluation(
        recipe=recipe, overrides=(*overrides, *(set_ or [])), resume=resume, accept_changes=accept_changes
    )
    if data is None and len(sources) == 1 and is_run_of_kind(sources[0], "finetuning"):
        if not resume:
            raise UserError(
                f"{sources[0]}: is a fine-tuned run. Resume it with --resume, or fine-tune from it with --data"
            )
        unused: dict[str, object] = {
            "--test": test,
            "--recipe": recipe,
            "--granularities": granularities,
            "--untrained": untrained,
        }
        unused |= {"--out": out, "--step": step, "--ema": use_ema, "--allow-missing": allow_missing}
        check_unused(sources[0], unused)
        models = [ModelUnderTest(sources[0], Path(sources[0]))]
    else:
        models = list_models(
            sources,
            data,
            out,
            suffix="finetuned",
            include_untrained=untrained,
            step=step,
            use_ema=use_ema,
            allow_missing=allow_missing,
        )
    if dry_run:
        print_estimates(evaluation, models)
        return
    if train_and_print("finetune", evaluation, models):
        dirs = [str(model.output_dir) for model in models]
        for path in dirs:
            print(f"wrote {path}: report.html, evaluations/finetune/classes.csv, and the classifier")
        print(f"next: c2fmae eval robustness {' '.join(map(quote, dirs))} --custom NAME=DIR")
