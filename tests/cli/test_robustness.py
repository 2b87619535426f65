"""The command `c2fmae eval robustness`."""

import csv
import json
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from c2fmae_cli.eval import eval_
from c2fmae_cli.robustness import SUITE_OPTIONS, robustness
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from c2fmae.core.errors import UserError
from c2fmae.data.corruption.names import CORRUPTIONS, SEVERITIES
from c2fmae.data.suites import CUSTOM, SUITES
from c2fmae.eval.robustness import evaluation, inference
from c2fmae.eval.robustness.inference import CellRequests
from tests.cli.commands import run_eval

pytestmark = pytest.mark.unchecked

NAMES = ("n01440764", "n01443537", "n01484850")
SMALL = ("--set", "workers=0")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Save two small classifiers as timm does, with classes in the reverse order of the names of directories."""
    root, sources = tmp_path_factory.mktemp("models"), list[str]()
    for name in ("one", "two"):
        torch.manual_seed(len(sources))
        model = timm.create_model("test_vit", num_classes=3, img_size=32)
        (root / name).mkdir()
        save_file(model.state_dict(), root / name / "model.safetensors")
        data = {"input_size": [3, 32, 32], "num_classes": 3, "classifier": "head"}
        config = {
            "architecture": "test_vit",
            "num_classes": 3,
            "model_args": {"img_size": 32},
            "label_names": list(reversed(NAMES)),
            "pretrained_cfg": data,
        }
        (root / name / "config.json").write_text(json.dumps(config))
        sources.append(str(root / name))
    return sources


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a clean set, a set named night, and a self-made set of all corruptions."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    set_dirs = ["clean", "night", *(f"made/{name}/{severity}" for name in CORRUPTIONS for severity in SEVERITIES)]
    for set_dir in set_dirs:
        for name in NAMES:
            (root / set_dir / name).mkdir(parents=True)
            pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(root / set_dir / name / f"{name}_0.png")
    made = {"made_by": "c2fmae 1", "tool": "t 2", "source": "clean", "size": [32, 32], "quality": 85, "seed": 0}
    labels = [{"name": name, "wnid": name} for name in NAMES]
    info = {"format": 1, "name": "made", "granularities": ["rgb"], "labels": labels, "corrupted": made}
    (root / "made" / "dataset.json").write_text(json.dumps(info))
    return root


def test_models_are_compared_in_one_table_with_protocol_and_paths(
    models: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ("robustness", *models, "--imagenet-c", str(images / "made"), "--clean", str(images / "clean"))
    args = (*args, "--custom", f"night={images / 'night'}", "--set", f"reference={models[1]}", *SMALL)
    text = run_eval(*args)
    lines = text.splitlines()
    assert lines[0].split() == ["unit", "count", *models]
    for name in ("clean: top-1, own classes", "imagenet-c (self-made): mean error", "night: drop from clean images"):
        assert any(line.startswith(name) for line in lines), name
    assert "Created by c2fmae 1 with t 2 from clean" in text
    assert any(line.startswith("protocol: Classes are matched by WordNet id") for line in lines)
    paths = [Path(line.removeprefix("wrote ")) for line in lines if line.startswith("wrote ")]
    assert [path.name for path in paths] == [
        *("results.json", "results.json"),
        *("report.html", "robustness.json", "robustness.csv"),
    ]
    assert [json.loads(path.read_text())["evaluation"] for path in paths[:2]] == ["robustness"] * 2
    rows = list(csv.DictReader(paths[4].read_text().splitlines()))
    assert len(rows) == 2 * (75 + 2)
    assert {row["photos"] for row in rows} == {"3"}
    comparison = json.loads(paths[3].read_text())
    assert list(comparison["models"]) == models
    assert comparison["table_iv"]["C2FMAE"]["score"] == 43.6
    page = (paths[2].parent / "report.html").read_text()
    for expected in (
        "gaussian_noise",
        "Comparison with Table IV of the paper",
        "reported by the paper",
        'aria-label="Accuracy by set, %"',
    ):
        assert expected in page
    assert lines[-1] == f"next: open {paths[2].parent / 'report.html'}"

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("predictions are computed again")

    monkeypatch.setattr(inference, "_load_views", fail)
    assert run_eval(*args) == text


def test_results_are_written_below_out(models: list[str], images: Path, tmp_path: Path) -> None:
    text = run_eval(
        "robustness", models[0], "--custom", f"night={images / 'night'}", "--out", str(tmp_path / "out"), *SMALL
    )
    assert f"wrote {tmp_path / 'out' / 'robustness.json'}" in text
    assert len(list((tmp_path / "out" / "one").glob("robustness-*/results.json"))) == 1
    assert len(list((tmp_path / "out" / "one" / "predictions").iterdir())) == 1
    assert "OTHER" in text.splitlines()[-1]


def test_cached_predictions_are_reused_when_a_model_is_added(
    models: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("--custom", f"night={images / 'night'}", "--out", str(tmp_path), *SMALL)
    run_eval("robustness", models[0], *args)
    sources = list[str]()

    def record_sources(cell_requests: list[CellRequests], *args: Any, **kwargs: Any) -> None:
        sources.extend(request.classifier.source for cell in cell_requests for request in cell.requests)
        inference.run_predictions(cell_requests, *args, **kwargs)

    monkeypatch.setattr(evaluation, "run_predictions", record_sources)
    run_eval("robustness", *models, *args)
    assert sources == models[1:]
    run_eval("robustness", models[0], *args, "--recompute")
    assert sources == [models[1], models[0]]


def test_comparisons_of_different_settings_have_different_directories(
    models: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ("robustness", models[0], "--custom", f"night={images / 'night'}", *SMALL)
    for options in ((), ("--set", "precision=bf16"), ("--set", "batch_size=2")):
        run_eval(*args, *options)
    comparisons = [json.loads(path.read_text()) for path in tmp_path.glob("evaluations/robustness-*/robustness.json")]
    assert sorted(comparison["config"]["precision"] for comparison in comparisons) == ["bf16", "fp32"]


def test_corruption_sets_are_rejected_as_clean_sets(models: list[str], images: Path) -> None:
    with pytest.raises(UserError) as caught:
        run_eval("robustness", models[0], "--custom", f"night={images / 'night'}", "--clean", str(images / "made"))
    assert str(caught.value) == (
        "clean: is a corruption set (expected a clean set without corruptions). Use the images that it was made from"
    )


def test_ctrl_c_prints_the_directory_of_cached_predictions(
    models: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "_load_views", stop)
    args = ["robustness", models[0], "--custom", f"night={images / 'night'}", "--out", str(tmp_path / "out"), *SMALL]
    result = CliRunner().invoke(eval_, args)
    assert result.exit_code != 0
    cache_dir = tmp_path / "out" / "one" / "predictions"
    assert f"interrupted. Finished parts are in {cache_dir}; run the same command again to continue" in result.stdout


def test_sets_can_be_given_by_settings_alone(models: list[str], images: Path, tmp_path: Path) -> None:
    sets = f"sets=[{{suite: custom, name: night, source: {images / 'night'}}}]"
    text = run_eval("robustness", models[0], "--out", str(tmp_path / "results"), "--set", sets, *SMALL)
    assert "night: top-1, own classes" in text


def test_every_option_of_a_suite_is_named_by_it() -> None:
    options = {parameter.replace("_", "-") for parameter in signature(robustness).parameters}
    assert set(SUITE_OPTIONS) == (set(SUITES) - {CUSTOM}) & options


def test_invalid_options_are_rejected(models: list[str], images: Path) -> None:
    night = str(images / "night")
    for args, message in (
        (
            (),
            "eval robustness: no set is given. Use one or more of --imagenet-a, --imagenet-r, --sketch, --imagenet-c, "
            "--imagenet-v2, --imagenet-real, --imagenet-w "
            "and --custom NAME=DIR",
        ),
        (("--custom", night), f"--custom {night}: expected NAME=DIR, as in --custom night=photos/night"),
        (
            ("--custom", f"night={night}", "--custom", f"night={night}"),
            "eval robustness: sets: two sets are named 'night'. Give one of them another name",
        ),
        (
            ("--clean", night, "--imagenet-val", night),
            "--imagenet-val, --clean: both give the clean images. Use one of them",
        ),
        (
            ("--custom", f"night={night}", "--set", "batchsize=3"),
            "eval robustness: batchsize: no such setting. Did you mean 'batch_size'?",
        ),
    ):
        with pytest.raises(UserError) as caught:
            run_eval("robustness", models[0], *args)
        assert str(caught.value) == message


def test_a_limit_takes_evenly_spaced_images_of_each_cell(
    models: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ("robustness", models[0], "--custom", f"made={images / 'made'}", "--clean", str(images / "clean"), *SMALL)
    for limit, number in ((("--limit", "2"), "2"), ((), "3")):  # cached predictions of two images are not those of all
        text = run_eval(*args, *limit)
        assert ("At most 2 evenly spaced images of each set and cell. " in text) == bool(limit)
        (path,) = (line.removeprefix("wrote ") for line in text.splitlines() if line.endswith("robustness.csv"))
        rows = list(csv.DictReader(Path(path).read_text().splitlines()))
        assert {row["photos"] for row in rows} == {number}
