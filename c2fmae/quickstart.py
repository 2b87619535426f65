"""The quickstart: pre-train on generated scenes, probe the encoder, and write a report with figures."""

import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from c2fmae.config.data import DatasetConfig
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.config.unseen_scenes import TEST_SEED_OFFSET, TRAIN_SEED_OFFSET, UnseenScenes
from c2fmae.core.errors import UserError
from c2fmae.core.experiment import RunOutcome
from c2fmae.core.run_dir import RunDir
from c2fmae.data import open_scenes
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.metrics import Metric, find_metric
from c2fmae.eval.probes.config import QUICK_SWEEP, DenseProbeEvaluation, KnnEvaluation, LinearProbeEvaluation
from c2fmae.eval.probes.reference_features import ColourHistogram, RawPixels
from c2fmae.loading import LoadedRun, load_run
from c2fmae.models.backbones import create_untrained_backbone, load_backbone
from c2fmae.pretrain import pretrain
from c2fmae.pretrain_report import write_pretraining_report
from c2fmae.report import Figure, Table, Text, table_to_lines
from c2fmae.report.drawing import save_png
from c2fmae.views.reconstruction import draw_reconstruction, sample_requested_masks, select_scenes

log = logging.getLogger(__name__)

NUM_PROBE_TRAIN, NUM_PROBE_TEST = 2048, 1024
"""Numbers of scenes to fit and to test the probes. They are not in the training set of the run."""

NUM_NEIGHBOURS = 20

_PROBE_EXPLANATION = """\
The encoder was frozen, and its only input was images. The probes classify images by their largest object (nearest
neighbours and a linear classifier) and patches by their pixels (a linear classifier of patches).

In pre-training, the inputs also included patches of semantic and instance maps, and the hidden patches of all three
were predicted. These maps contain the classes of the probes, so pre-training was not free of labels. No image of the
probes was in the training set."""


def quickstart(
    config: PretrainConfig, out: Path, *, num_train: int = NUM_PROBE_TRAIN, num_test: int = NUM_PROBE_TEST
) -> RunOutcome:
    """Pre-train or resume, then probe the encoder, draw a reconstruction and write the report."""
    if not isinstance(config.data.train, DatasetConfig) or config.data.train.name != "generated":
        raise UserError(
            "data.train: expected generated scenes for quickstart. For other data use: c2fmae pretrain c2fmae-tiny "
            "--data …"
        )
    outcome = pretrain(config, out, resume=True)
    if outcome.status != "finished":
        return outcome
    run = load_run(out)
    log.info("probing features on %d and %d scenes", num_train, num_test)
    table = build_probe_table(probe_encoders(run, out, num_train, num_test), num_train, num_test)
    for line in table_to_lines(table):
        log.info("%s", line)
    path = draw_from_rgb(run, out)
    write_pretraining_report(
        RunDir(out),
        [
            Figure(path, "Maps predicted from images alone, for scenes that are not in the training set."),
            Text(_PROBE_EXPLANATION, title="Probes"),
            table,
        ],
    )
    return outcome


def probe_encoders(run: LoadedRun, out: Path, num_train: int, num_test: int) -> dict[str, dict[str, Metric | None]]:
    """Return the metrics of each probe for the trained encoder and for baseline features."""
    sets: dict[str, Any] = {
        "train": _unseen_scenes(run, num_train, TRAIN_SEED_OFFSET),
        "test": _unseen_scenes(run, num_test, TEST_SEED_OFFSET),
        "workers": 0,
    }
    knn = KnnEvaluation(**sets, ks=(NUM_NEIGHBOURS,))
    linear = LinearProbeEvaluation(**sets, **QUICK_SWEEP, epochs=40)
    dense = DenseProbeEvaluation(**sets, **QUICK_SWEEP, epochs=8)
    trained = load_backbone(out)
    encoders = {
        "trained": trained,
        "untrained": create_untrained_backbone(trained.spec, run.config.training.seed),
        "raw pixels": RawPixels(trained.spec),
        "colour histogram": ColourHistogram(trained.spec),
    }
    metrics: dict[str, dict[str, Metric | None]] = {}
    for name, encoder in encoders.items():
        with TemporaryDirectory() as features:
            model = ModelUnderTest.in_memory(name, Path(features), backbone=encoder)
            metrics[name] = {
                "k-NN, %": find_metric(knn.run(model), "top1", votes="weighted", k=NUM_NEIGHBOURS),
                "linear, %": find_metric(linear.run(model), "top1"),
                "patches, mIoU %": find_metric(dense.run(model), "mean_iou"),
            }
    return metrics


def build_probe_table(metrics: Mapping[str, Mapping[str, Metric | None]], num_train: int, num_test: int) -> Table:
    """Return a table with a row for each encoder and a column for each probe."""
    columns = tuple(next(iter(metrics.values())))
    rows = [
        (name, *(f"{metric.value:.1f}" if metric else "–" for metric in row.values())) for name, row in metrics.items()
    ]
    footnote = f"Fitted to {num_train} labelled scenes, tested on {num_test} others; k-NN has k = {NUM_NEIGHBOURS}."
    return Table("Frozen features of images alone", ("features", *columns), rows, footnote)


def draw_from_rgb(run: LoadedRun, out: Path) -> Path:
    """Draw the maps that the model predicts from complete images, and return the path of the figure."""
    scenes = select_scenes(run.method, open_scenes(_unseen_scenes(run, 64, TEST_SEED_OFFSET)), 6)
    masks = sample_requested_masks(run.method, scenes, {"rgb": "all"})
    figure = draw_reconstruction(
        run.method, scenes, masks, model_name=f"{out.name}, step {run.step}", class_names=run.class_names
    )
    return save_png(figure, RunDir(out).figures / "from-rgb.png")


def _unseen_scenes(run: LoadedRun, num_scenes: int, seed_offset: int) -> DatasetConfig:
    """Return generated scenes like those of the training set, with another seed."""
    train = run.config.data.train
    assert isinstance(train, DatasetConfig)  # as `quickstart` checks
    options = dict(train.options)
    unseen = UnseenScenes.of_training([options])
    chosen = {"size": options["size"], "length": num_scenes, "seed": unseen.seed + seed_offset}
    return DatasetConfig(name="generated", options={**unseen.options, **chosen})
