"""From nothing to a page: generated scenes, pre-training, probes of what was learned, and pictures."""

import logging
from collections.abc import Mapping
from pathlib import Path

from c2fmae.config.data import DatasetConfig
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.errors import UserError
from c2fmae.core.experiment import RunOutcome
from c2fmae.core.run_dir import RunDir
from c2fmae.data import CentralView, Scenes, open_scenes
from c2fmae.eval.probes import (
    ProbeScores,
    encode_scenes,
    make_colour_encoder,
    make_image_encoder,
    make_pixel_encoder,
    pool_concatenated,
    pool_mean,
    run_probes,
)
from c2fmae.eval.probes.features import PatchEncoder
from c2fmae.loading import LoadedRun, load_run
from c2fmae.methods import build_method
from c2fmae.pretrain import pretrain
from c2fmae.pretrain_report import write_pretraining_report
from c2fmae.report import Figure, Table, Text, table_to_lines
from c2fmae.report.drawing import save_png
from c2fmae.views.reconstruction import draw_reconstruction, sample_requested_masks, select_scenes

log = logging.getLogger(__name__)

NUM_PROBE_TRAIN, NUM_PROBE_TEST = 2048, 1024
"""Scenes whose labels the probes are given, and others on which they are tried; no run has seen either."""

_PROBE_EXPLANATION = """\
The encoder was frozen and shown photos alone. The probes ask its features which kind of thing shows most (nearest
neighbours, and a linear classifier), and which class each patch is of (a linear classifier of patches).

What to make of it: the features were learned from maps and pixels. In pre-training the encoder saw patches of
semantic and instance maps beside those of the photo, and had to fill in what was hidden of all three; the kinds that
are asked for are among the classes of these maps. So this is not learning without labels: it is what pre-training on
images and on what is in them is for. No photo that is probed here was in the training."""


def quickstart(
    config: PretrainConfig, out: Path, *, num_train: int = NUM_PROBE_TRAIN, num_test: int = NUM_PROBE_TEST
) -> RunOutcome:
    """Pre-train, or go on with it, then probe what was learned, draw it and write the page."""
    if not isinstance(config.data.train, DatasetConfig) or config.data.train.name != "generated":
        raise UserError("quickstart: is for generated scenes. For others take: c2fmae pretrain c2fmae-tiny --data …")
    outcome = pretrain(config, out, resume=True)
    if outcome.status != "finished":
        return outcome
    run = load_run(out)
    log.info("probing features on %d and %d scenes", num_train, num_test)
    table = build_probe_table(
        probe_encoders(run, _open_unseen_scenes(run, num_train, 1), _open_unseen_scenes(run, num_test, 2)),
        num_train,
        num_test,
    )
    for line in table_to_lines(table):
        log.info("%s", line)
    path = draw_from_rgb(run, out)
    write_pretraining_report(
        RunDir(out),
        [
            Figure(path, "From the photo alone: the maps are what the model makes of it. These scenes are new to it."),
            Text(_PROBE_EXPLANATION, title="What was learned"),
            table,
        ],
    )
    return outcome


def probe_encoders(run: LoadedRun, train: Scenes, test: Scenes) -> dict[str, ProbeScores]:
    """Return the scores of the trained encoder, and of what it is to be compared with."""
    method, config = run.method, run.config
    mean, std = method.config.mean_and_std("rgb")
    untrained = build_method(config.method, seed=config.training.seed)
    view = CentralView(**method.view_options)
    encoders: Mapping[str, PatchEncoder] = {
        "trained": make_image_encoder(method),
        "untrained, as it was before the first step": make_image_encoder(untrained),
        "raw pixels": make_pixel_encoder(method.patch_size, mean, std),
        "colour histogram": make_colour_encoder(method.patch_size),
    }
    return {
        name: run_probes(
            *(
                encode_scenes(encode, s, view, pool=pool_concatenated if "pixels" in name else pool_mean)
                for s in (train, test)
            )
        )
        for name, encode in encoders.items()
    }


def build_probe_table(scores: Mapping[str, ProbeScores], num_train: int, num_test: int) -> Table:
    """Return the comparison as a table of percentages."""
    rows = [
        (name, *(_format_percent(value) for value in (each.knn, each.linear, each.dense and each.dense.miou)))
        for name, each in scores.items()
    ]
    note = f"{num_train} scenes with labels, tried on {num_test} more; 20 nearest neighbours, logistic regression."
    columns = ("frozen features of", "k-NN, %", "linear, %", "patches, mIoU %")
    return Table("Features of photos alone, frozen", columns, rows, note)


def draw_from_rgb(run: LoadedRun, out: Path) -> Path:
    """Draw what the model makes of photos of which it sees all, and of maps of which it sees nothing."""
    scenes = select_scenes(run.method, _open_unseen_scenes(run, 64, 2), 6)
    masks = sample_requested_masks(run.method, scenes, {"rgb": "all"})
    figure = draw_reconstruction(
        run.method, scenes, masks, model_name=f"{out.name}, step {run.step}", class_names=run.class_names
    )
    return save_png(figure, RunDir(out).figures / "from-photo-alone.png")


def _open_unseen_scenes(run: LoadedRun, num_scenes: int, seed_offset: int) -> Scenes:
    """Return scenes like those that were learned from, drawn from a seed of their own."""
    train = run.config.data.train
    options = train.given_options() if isinstance(train, DatasetConfig) else {}
    seed = 1000 * (1 + options.get("seed", 0)) + seed_offset
    return open_scenes("generated", **{**options, "length": num_scenes, "seed": seed})


def _format_percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"
