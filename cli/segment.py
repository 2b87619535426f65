"""`c2fmae eval segment …`: fine-tune backbones for semantic segmentation and test them."""

from pathlib import Path
from shlex import quote
from typing import Annotated

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
    update_run_reports,
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
from c2fmae.core.log import is_main_process


def segment(
    sources: SourcesArgument,
    data: Annotated[
        str | None,
        typer.Option(
            help="Images with semantic maps: a folder with a training and a test set (with --test, the training set), "
            "or `generated`."
        ),
    ] = None,
    test: Annotated[str | None, typer.Option(help="The test set, if --data does not contain it.")] = None,
    limit: LimitOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="paper, mae, linear, convnext or small. By default, that of the ViT's size."),
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
    """Fine-tune ViTs for semantic segmentation.

    The same command works alone, under `torchrun` and under `srun`. With a finished run instead of a ViT, test the run
    again, without training; `--set testing.…` changes the protocol. On SIGTERM, a run saves a checkpoint and exits
    with 75.
    """
    from c2fmae.eval.evaluation import LoadOptions, ModelUnderTest
    from c2fmae.eval.segmentation.config import SegmentationDataConfig
    from c2fmae.eval.segmentation.evaluation import SegmentEvaluation

    sets = SegmentationDataConfig.resolve_data_options(data, test)
    overrides = [f"data.{split}={quote_yaml(source)}" for split, source in sets.items()]
    overrides += [f"data.limit={limit}"] if limit is not None else []
    overrides += training_overrides(steps, epochs, batch_size, lr)
    overrides += set_ or []
    is_retest = False
    if data is None and len(sources) == 1 and is_run_of_kind(sources[0], "segmentation"):
        source = sources[0]
        is_retest = not resume and _changes_only_the_test(overrides)
        if not resume and not is_retest:
            raise UserError(
                f"{source}: is a run of a segmenter. Test it again with --set testing.…, resume it with --resume, or "
                "fine-tune from it with --data"
            )
        if resume and overrides and _changes_only_the_test(overrides) and is_finished(source):
            raise UserError(f"{source}: is finished. Test it by another protocol without --resume")
        if is_retest and dry_run:
            raise UserError("--dry-run: estimates a training, but this command only tests a run. Leave it out")
        unused: dict[str, object] = {"--recipe": recipe, "--untrained": untrained, "--out": out}
        unused |= {"--allow-missing": allow_missing}
        check_unused(source, unused if is_retest else {**unused, "--test": test, "--step": step, "--ema": use_ema})
        options = LoadOptions(step=step, use_ema=use_ema)
        models = [ModelUnderTest(source, Path(source), load_options=options)]
    else:
        models = list_models(
            sources,
            data,
            out,
            suffix="segmentation",
            include_untrained=untrained,
            step=step,
            use_ema=use_ema,
            allow_missing=allow_missing,
        )
    evaluation = SegmentEvaluation(
        recipe=recipe, overrides=tuple(overrides), resume=resume, accept_changes=accept_changes, retest=is_retest
    )
    if dry_run:
        from c2fmae.eval.segmentation.experiment import build_segmentation

        print_estimates(evaluation, models, build_segmentation)
        return
    try:
        results = train_and_print("segment", evaluation, models, recompute=recompute)
    except KeyboardInterrupt:
        if is_retest and is_main_process():
            again = "the same command without --recompute" if recompute else "the same command again"
            print(f"interrupted. Predictions so far are stored; run {again} to continue", flush=True)
        raise
    if not results:
        return
    dirs = [str(model.output_dir) for model in models]
    if is_retest:
        update_run_reports(dirs)
    else:
        for path in dirs:
            print(f"wrote {path}: report.html, evaluations/segment/classes.csv, and the segmenter")
    print(f"next: c2fmae predict {quote(dirs[0])} IMAGES --out DIR")


def _changes_only_the_test(overrides: list[str]) -> bool:
    """Return whether all overrides are of the test."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    return all(
        key in ("data.test", "data.limit", "data.workers") or key.startswith(("testing.", "data.test.")) for key in keys
    )
