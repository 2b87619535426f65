from pathlib import Path
from typing import Any

from c2fmae.pretrain_report import build_pretrain_page
from c2fmae.report import Table, render_page
from tests.report.parsed_page import ParsedPage, write_images

CONFIG = """\
name: first-try
title: A first try.
method: {name: c2fmae, encoder: {name: test_vit}, granularities: [semantic, rgb], image_size: [64, 64]}
data: {train: {name: generated, options: {size: 64}}, held_out: null}
training: {steps: 4, lr: 0.001, compile: false, clip: null}
"""
ROWS: list[dict[str, Any]] = [
    {"step": 1, "lr": 1e-4, "loss": 3.0, "loss/semantic": 2.0, "loss/rgb": 1.0, "alpha": 1.0, "beta": 0.0},
    {"step": 2, "lr": 2e-4, "loss": None, "loss/semantic": None, "loss/rgb": 1.0, "skipped": "not finite"},
    {"step": 3, "lr": 1e-4, "loss": 2.5, "loss/semantic": 1.6, "loss/rgb": 0.9, "valid/semantic": 0.97},
    {"step": 3, "held_out/loss": 2.75, "held_out/semantic": 1.8, "held_out/rgb": 0.95},
    {"step": 4, "lr": 0.0, "loss": 2.25, "loss/semantic": 1.5, "loss/rgb": 0.75, "grad_norm": 0.5},
]


def test_the_page_shows_outcome_figures_curves_and_settings(tmp_path: Path) -> None:
    figures = write_images(tmp_path, "step-00000002.png", "step-00000003.png", "step-00000004.png")
    extra = [Table("Probes", ("", "k-NN"), [("trained", 35.0)])]
    page = ParsedPage(render_page(build_pretrain_page(ROWS, CONFIG, {"cpu": "a fast one"}, figures, extra)))
    for words in (
        "first-try A first try.",
        "Steps 4 Loss 3 → 2.25 Held-out loss 2.75 → 2.75",
        "Probes",
        "After 2 steps",
        "After 4 steps",
        "Skipped steps, shown as gaps in the curves: 1 × not finite.",
        "Total training 2.25 held out 2.75",
        "semantic training 1.5 held out 1.8",
        "rgb training 0.75 held out 0.95",
        "Learning rate",
        "Gradient norm",
        "Masking curriculum semantic, α 1 instance, β 0",
        "Labelled fraction of the hidden cells semantic 0.97",
        "Encoder test_vit Granularities semantic, rgb Image height, width 64, 64 Training data generated",
        "steps 4 lr 0.001 compile no",
        "a fast one",
        "c2fmae view reconstruct RUN --visible rgb:all",
    ):
        assert words in page.text
    assert "After 3 steps" not in page.text
    assert page.text.index("Probes") < page.text.index("Total training")


def test_the_page_shows_the_probes_of_the_training() -> None:
    accuracies = [(0, 12.5, 20.0), (2, 40.0, None), (4, 35.0, 55.25)]
    rows = [{"step": step, "probe/knn": knn, "probe/linear": linear} for step, knn, linear in accuracies]
    probes = "watching: {probes: {data: packs/mine, train_samples: 2048, test_samples: 1024}}"
    page = ParsedPage(render_page(build_pretrain_page([*ROWS, *rows], f"{CONFIG}{probes}", {}, [])))
    for words in (
        "Probes during training Accuracy on labelled images",
        "Data: packs/mine , at most 2,048 images to fit to and 1,024 others to test on.",
        "Top-1 accuracy, % k-NN 35 linear 55.25",
        "probe first highest last k-NN 12.5 (step 0) 40.0 (step 2) 35.0 (step 4)",
        "linear 20.0 (step 0) 55.2 (step 4) 55.2 (step 4)",
    ):
        assert words in page.text
    removed = ParsedPage(render_page(build_pretrain_page([*ROWS, *rows], CONFIG, {}, [])))
    assert "Probes during training" in removed.text
    assert "Data: " not in removed.text
    assert "Probes" not in ParsedPage(render_page(build_pretrain_page(ROWS, CONFIG, {}, []))).text


def test_the_page_shows_the_speed_and_what_limits_it() -> None:
    stages = {"decode_ms": 3.0, "crop_ms": 0.75, "stack_ms": 0.25, "workers": 1}
    timing: list[dict[str, Any]] = [
        {"step": step, "seconds": seconds, "samples_per_second": 80.0, "waited": 0.5, **stages}
        for step, seconds in ((1, 9.0), (2, 1.0), (3, 1.0))
    ]
    page = ParsedPage(render_page(build_pretrain_page(ROWS, CONFIG, {"world_size": 2}, [], timing_rows=timing)))
    for words in (
        "Speed Loading limits training, which waits for data about 50% of the time.",
        "A sample takes 4 ms to load: 75% reading and decoding, 19% cropping, 6% stacking.",
        "Samples per second samples/s 80",
        "Waiting for data, % of the time waiting 50",
        "Loading of a sample, ms reading and decoding 3 cropping 0.75 stacking 0.25",
    ):
        assert words in page.text
    for row in timing:
        row["mask_ms"] = 0.0  # as other trainings log, which do not mask
    timing[0] |= {"waited": "half", "crop_ms": "?"}
    page = ParsedPage(render_page(build_pretrain_page(ROWS, CONFIG, {"world_size": 2}, [], timing_rows=timing)))
    assert "Loading of a sample, ms reading and decoding 3 cropping 0.75 stacking 0.25" in page.text
    assert "masking 0" not in page.text
    for row in timing:
        row["mask_ms"] = 0.5
    page = ParsedPage(render_page(build_pretrain_page(ROWS, CONFIG, {"world_size": 2}, [], timing_rows=timing)))
    assert "cropping 0.75 stacking 0.25 masking 0.5" in page.text
    old = [{"step": 1, "seconds": 1.0, "samples_per_second": 80.0, "waited": 0.5}]  # without times of loading
    page = ParsedPage(render_page(build_pretrain_page(ROWS, CONFIG, {}, [], timing_rows=old)))
    assert "Speed Means since the previous point" in page.text


def test_a_run_without_steps_has_a_page() -> None:
    page = ParsedPage(render_page(build_pretrain_page([], "method: {name: mae}", {}, [])))
    assert "mae A pre-training run: its outcome, reconstructions, losses and settings. Steps 0 Losses" in page.text
    assert "Total No values yet." in page.text
    assert page.all("img") == []


def test_the_page_explains_the_measures_of_collapse_that_a_run_has() -> None:
    rows = [{"step": 1, "loss": 3.0, "feature_spread": 0.5, "contrast_accuracy": 0.25}]
    text = ParsedPage(render_page(build_pretrain_page(rows, CONFIG, {}, []))).text
    assert "feature_spread : 1 if they are spread out, 0 if they are equal." in text
    assert "contrast_accuracy : how often an image, or a patch, finds its own among all others." in text
    assert "teacher_entropy" not in text
    assert "Collapse" not in ParsedPage(render_page(build_pretrain_page(ROWS, CONFIG, {}, []))).text


def test_the_page_of_a_two_branch_run_suggests_no_reconstruction() -> None:
    page = ParsedPage(render_page(build_pretrain_page([], "method: {kind: dino, name: dino}", {}, [])))
    assert "Classify images with the encoder's features:" in page.text
    assert "reconstruct the maps" not in page.text
