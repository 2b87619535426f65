"""`c2fmae eval robustness …` as it is typed."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from c2fmae_cli.eval import eval_
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from c2fmae.core.errors import UserError
from c2fmae.data.corruption.names import CORRUPTIONS, SEVERITIES
from c2fmae.eval.robustness import evaluation, inference
from c2fmae.eval.robustness.inference import CellRequests

NAMES = ("n01440764", "n01443537", "n01484850")
SMALL = ("--set", "workers=0")


def said(*words: str) -> str:
    result: Result = CliRunner().invoke(eval_, words)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two small classifiers as timm saves them, whose classes are not in the order of the folders' names."""
    root, places = tmp_path_factory.mktemp("models"), list[str]()
    for name in ("one", "two"):
        torch.manual_seed(len(places))
        model = timm.create_model("test_vit", num_classes=3, img_size=32)
        (root / name).mkdir()
        save_file(model.state_dict(), root / name / "model.safetensors")
        data = {"input_size": [3, 32, 32], "num_classes": 3, "classifier": "head"}
        told = {
            "architecture": "test_vit",
            "num_classes": 3,
            "model_args": {"img_size": 32},
            "label_names": list(reversed(NAMES)),
            "pretrained_cfg": data,
        }
        (root / name / "config.json").write_text(json.dumps(told))
        places.append(str(root / name))
    return places


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clean photos, photos by night, and a self-made set of all corruptions."""
    root = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    places = ["clean", "night", *(f"made/{name}/{severity}" for name in CORRUPTIONS for severity in SEVERITIES)]
    for place in places:
        for name in NAMES:
            (root / place / name).mkdir(parents=True)
            pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(root / place / name / f"{name}_0.png")
    made = {"made_by": "c2fmae 1", "tool": "t 2", "source": "clean", "size": [32, 32], "quality": 85, "seed": 0}
    labels = [{"name": name, "wnid": name} for name in NAMES]
    told = {"format": 1, "name": "made", "granularities": ["rgb"], "labels": labels, "corrupted": made}
    (root / "made" / "dataset.json").write_text(json.dumps(told))
    return root


def test_several_models_come_out_in_one_table_with_protocol_and_places(
    models: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("robustness", *models, "--imagenet-c", str(photos / "made"), "--clean", str(photos / "clean"))
    words = (*words, "--custom", f"night={photos / 'night'}", "--set", f"reference={models[1]}", *SMALL)
    text = said(*words)
    lines = text.splitlines()
    assert lines[0].split() == ["unit", "count", *models]
    for name in ("clean: top-1, own classes", "imagenet-c (self-made): mean error", "night: drop from clean images"):
        assert any(line.startswith(name) for line in lines), name
    assert "Created by c2fmae 1 with t 2 from clean" in text
    assert any(line.startswith("protocol: Classes are matched by WordNet id") for line in lines)
    places = [Path(line.removeprefix("wrote ")) for line in lines if line.startswith("wrote ")]
    assert [place.name for place in places] == [
        *("results.json", "results.json"),
        *("report.html", "robustness.json", "robustness.csv"),
    ]
    assert [json.loads(place.read_text())["evaluation"] for place in places[:2]] == ["robustness"] * 2
    rows = list(csv.DictReader(places[4].read_text().splitlines()))
    assert len(rows) == 2 * (75 + 2)
    assert {row["photos"] for row in rows} == {"3"}
    together = json.loads(places[3].read_text())
    assert list(together["models"]) == models
    assert together["table_iv"]["C2FMAE"]["score"] == 43.6
    page = (places[2].parent / "report.html").read_text()
    for expected in ("gaussian_noise", "Beside Table IV", "reported by the paper", 'aria-label="Accuracy by set, %"'):
        assert expected in page
    assert lines[-1] == f"next: open {places[2].parent / 'report.html'}"

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(inference, "_load_views", refuse)
    assert said(*words) == text


def test_results_go_where_they_are_told(models: list[str], photos: Path, tmp_path: Path) -> None:
    text = said(
        "robustness", models[0], "--custom", f"night={photos / 'night'}", "--out", str(tmp_path / "out"), *SMALL
    )
    assert f"wrote {tmp_path / 'out' / 'robustness.json'}" in text
    assert len(list((tmp_path / "out" / "one").glob("robustness-*/results.json"))) == 1
    assert len(list((tmp_path / "out" / "one" / "predictions").iterdir())) == 1
    assert "OTHER" in text.splitlines()[-1]


def test_a_model_beside_the_first_does_not_have_it_asked_anew(
    models: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--custom", f"night={photos / 'night'}", "--out", str(tmp_path), *SMALL)
    said("robustness", models[0], *words)
    asked = list[str]()

    def noted(rounds: list[CellRequests], *rest: Any, **more: Any) -> None:
        asked.extend(question.classifier.source for each in rounds for question in each.requests)
        inference.run_predictions(rounds, *rest, **more)

    monkeypatch.setattr(evaluation, "run_predictions", noted)
    said("robustness", *models, *words)
    assert asked == models[1:]
    said("robustness", models[0], *words, "--recompute")
    assert asked == [models[1], models[0]]


def test_results_of_other_settings_lie_beside_each_other(
    models: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("robustness", models[0], "--custom", f"night={photos / 'night'}", *SMALL)
    for more in ((), ("--set", "precision=bf16"), ("--set", "batch_size=2")):
        said(*words, *more)
    kept = [json.loads(path.read_text()) for path in tmp_path.glob("evaluations/robustness-*/robustness.json")]
    assert sorted(each["config"]["precision"] for each in kept) == ["bf16", "fp32"]


def test_a_set_of_corruptions_is_refused_as_clean(models: list[str], photos: Path) -> None:
    with pytest.raises(UserError) as caught:
        said("robustness", models[0], "--custom", f"night={photos / 'night'}", "--clean", str(photos / "made"))
    assert str(caught.value) == (
        "clean: is a corruption set, so it cannot be the set without a shift. Use the images that it was made of"
    )


def test_ctrl_c_says_what_is_kept(
    models: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "_load_views", stop)
    words = ["robustness", models[0], "--custom", f"night={photos / 'night'}", "--out", str(tmp_path / "out"), *SMALL]
    result = CliRunner().invoke(eval_, words)
    assert result.exit_code != 0
    kept = tmp_path / "out" / "one" / "predictions"
    assert f"interrupted. Finished parts are in {kept}; run the same command again to continue" in result.stdout


def test_what_is_wrong_in_words_is_said(models: list[str], photos: Path) -> None:
    night = str(photos / "night")
    for words, message in (
        (
            (),
            "no set is given. Use one or more of --imagenet-a, --imagenet-r, --sketch, --imagenet-c and "
            "--custom NAME=DIR",
        ),
        (("--custom", night), f"--custom {night}: expected NAME=DIR, as in --custom night=photos/night"),
        (
            ("--custom", f"night={night}", "--custom", f"night={night}"),
            "eval robustness: sets: two sets are named 'night'. Give one of them another name",
        ),
        (
            ("--clean", night, "--imagenet-val", night),
            "--imagenet-val and --clean both name the images without a shift. Use one of them",
        ),
        (
            ("--custom", f"night={night}", "--set", "batchsize=3"),
            "eval robustness: batchsize: no such setting. Did you mean 'batch_size'?",
        ),
    ):
        with pytest.raises(UserError) as caught:
            said("robustness", models[0], *words)
        assert str(caught.value) == message
