"""From nothing to a page: generated scenes, pre-training, probes of what was learned, and pictures."""

import logging
from collections.abc import Mapping
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.experiment import Outcome
from c2fmae.core.run_dir import RunFolder
from c2fmae.data import CentralView, Scenes, open_scenes
from c2fmae.eval.probes import (
    Scores,
    colour_encoder,
    concatenate,
    extract,
    mean_of,
    photo_encoder,
    pixel_encoder,
    probe,
)
from c2fmae.eval.probes.features import Encode
from c2fmae.loading import LoadedRun, load_run
from c2fmae.methods import build_method
from c2fmae.pretrain import PretrainConfig, pretrain, write_page
from c2fmae.report import Picture, Table, Text, as_lines
from c2fmae.report.drawing import save_png
from c2fmae.views.reconstruction import draw_reconstruction, masks_showing, take_scenes

log = logging.getLogger(__name__)

LEARN_FROM, TRY_ON = 2048, 1024
"""Scenes whose labels the probes are given, and others on which they are tried; no run has seen either."""

_WHAT_IT_SHOWS = """\
The encoder was frozen and shown photos alone. The probes ask its features which kind of thing shows most (nearest
neighbours, and a linear classifier), and which class each patch is of (a linear classifier of patches).

What to make of it: the features were learned from maps and pixels. In pre-training the encoder saw patches of
semantic and instance maps beside those of the photo, and had to fill in what was hidden of all three; the kinds that
are asked for are among the classes of these maps. So this is not learning without labels: it is what pre-training on
images and on what is in them is for. No photo that is probed here was in the training."""


def quickstart(config: PretrainConfig, out: Path, *, learn_from: int = LEARN_FROM, try_on: int = TRY_ON) -> Outcome:
    """Pre-train, or go on with it, then probe what was learned, draw it and write the page."""
    if config.data.train != "generated":
        raise UserError("quickstart: is for generated scenes. For others take: c2fmae pretrain c2fmae-tiny --data …")
    outcome = pretrain(config, out, resume=True)
    if outcome.status != "finished":
        return outcome
    run = load_run(out)
    log.info("probing features on %d and %d scenes", learn_from, try_on)
    table = probe_table(compare(run, _fresh(run, learn_from, 1), _fresh(run, try_on, 2)), learn_from, try_on)
    for line in as_lines(table):
        log.info("%s", line)
    path = draw_from_photo(run, out)
    write_page(
        RunFolder(out),
        [
            Picture(path, "From the photo alone: the maps are what the model makes of it. These scenes are new to it."),
            Text(_WHAT_IT_SHOWS, title="What was learned"),
            table,
        ],
    )
    return outcome


def compare(run: LoadedRun, train: Scenes, test: Scenes) -> dict[str, Scores]:
    """Return the scores of the trained encoder, and of what it is to be compared with."""
    method, config = run.method, run.config
    mean, std = method.config.normalisation("rgb")
    untrained = build_method(config.method, seed=config.training.seed)
    view = CentralView(**method.cut)
    kinds: Mapping[str, Encode] = {
        "trained": photo_encoder(method),
        "untrained, as it was before the first step": photo_encoder(untrained),
        "raw pixels": pixel_encoder(method.patch, mean, std),
        "colour histogram": colour_encoder(method.patch),
    }
    return {
        name: probe(
            *(extract(encode, s, view, pool=concatenate if "pixels" in name else mean_of) for s in (train, test))
        )
        for name, encode in kinds.items()
    }


def probe_table(scores: Mapping[str, Scores], learn_from: int, try_on: int) -> Table:
    """Return the comparison as a table of percentages."""
    rows = [
        (name, *(_percent(value) for value in (each.knn, each.linear, each.dense and each.dense.miou)))
        for name, each in scores.items()
    ]
    note = f"{learn_from} scenes with labels, tried on {try_on} more; 20 nearest neighbours, logistic regression."
    columns = ("frozen features of", "k-NN, %", "linear, %", "patches, mIoU %")
    return Table("Features of photos alone, frozen", columns, rows, note)


def draw_from_photo(run: LoadedRun, out: Path) -> Path:
    """Draw what the model makes of photos of which it sees all, and of maps of which it sees nothing."""
    scenes = take_scenes(run.method, _fresh(run, 64, 2), 6)
    masks = masks_showing(run.method, scenes, {"rgb": "all"})
    picture = draw_reconstruction(
        run.method, scenes, masks, model=f"{out.name}, step {run.step}", class_names=run.class_names
    )
    return save_png(picture, RunFolder(out).pictures / "from-photo-alone.png")


def _fresh(run: LoadedRun, length: int, number: int) -> Scenes:
    """Return scenes like those that were learned from, drawn from a seed of their own."""
    data = run.config.data
    seed = 1000 * (1 + int(data.options.get("seed", 0))) + number
    return open_scenes("generated", **{**data.options, "length": length, "seed": seed})


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
