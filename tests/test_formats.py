"""Files of earlier versions are still read: by the command, and by the functions that the documentation names."""

import html
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from c2fmae_cli import app
from safetensors.torch import load_file
from typer.testing import CliRunner

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.core.run_info import read_run_info
from c2fmae.core.scene import SceneBatch
from c2fmae.data import CentralView, open_scenes
from c2fmae.loading import load_run
from c2fmae.models.backbones import load_backbone

FORMATS = Path(__file__).parent / "formats" / "v1"
KNN = ("eval", "knn", "runs/mae", "--data", "data/pack", "--test", "data/photos", "--set", "ks=[1, 3]")
ROBUSTNESS = ("eval", "robustness", "runs/finetuned", "--clean", "data/photos", "--custom", "corrupted=data/corrupted")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a copy of the files; the shard has the time of change that its index notes, which no checkout keeps."""
    shutil.copytree(FORMATS, tmp_path / "v1")
    monkeypatch.chdir(tmp_path / "v1")
    shard = Path("data/pack/train-000000.tar")
    _, changed = json.loads(Path(f"{shard}.index").read_bytes().partition(b"\n")[0])["stamp"]
    os.utime(shard, ns=(changed, changed))


def run_command(*words: str) -> str:
    """Run a command in this process and return what it prints."""
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def read_json(path: str) -> Any:
    return json.loads(Path(path).read_bytes())


def read_rows(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def snapshot(folder: str) -> dict[str, int]:
    """Return when each file was last written, by path; pages are views of the others."""
    return {str(p): p.stat().st_mtime_ns for p in Path(folder).rglob("*") if p.is_file() and p.suffix != ".html"}


@pytest.mark.parametrize(("run", "saved_step", "remaining_steps"), [("runs/c2fmae", 4, [4, 6]), ("runs/mae", 3, [6])])
def test_pretraining_resumes_and_finishes(run: str, saved_step: int, remaining_steps: list[int]) -> None:
    before = read_rows(run)
    run_command("pretrain", run, "--resume")
    state = read_json(f"{run}/state.json")
    assert (state["status"], state["step"]) == ("finished", 6)
    assert read_json(f"{run}/environment.json")["resumed"][0]["step"] == saved_step
    rows = read_rows(run)
    trained = [row for row in rows if "lr" in row]
    assert [row["step"] for row in trained] == [1, 2, 3, 4, 5, 6]
    assert {tuple(row) for row in trained} == {tuple(before[0])}
    assert rows[: rows.index(trained[saved_step - 1]) + 1] == before[: before.index(trained[saved_step - 1]) + 1]
    assert "held_out/loss" in rows[-1]
    assert sorted(path.name for path in Path(run, "checkpoints").iterdir()) == [
        f"step-{step:08d}" for step in remaining_steps
    ]
    assert load_run(Path(run)).step == 6
    finished = snapshot(run)
    run_command("pretrain", run, "--resume")
    assert snapshot(run) == finished


def test_a_fine_tuned_run_resumes() -> None:
    before = snapshot("runs/finetuned")
    assert "top-1" in run_command("eval", "finetune", "runs/finetuned", "--resume")
    assert snapshot("runs/finetuned") == before
    longer = ("--accept-changes", "--set", "training.steps=6")
    run_command("eval", "finetune", "runs/finetuned", "--resume", *longer)
    state = read_json("runs/finetuned/state.json")
    assert (state["status"], state["step"]) == ("finished", 6)
    assert [row["step"] for row in read_rows("runs/finetuned") if "test/top-1" in row] == [2, 4, 6]
    assert len([*Path("runs/finetuned/best").iterdir()]) == 1


def test_a_fine_tuned_run_is_not_taken_for_a_pretraining() -> None:
    for open_it in (lambda: load_run(Path("runs/finetuned")), lambda: run_command("pretrain", "runs/finetuned")):
        with pytest.raises(UserError, match="runs/finetuned: is a fine-tuned"):
            open_it()


@pytest.mark.parametrize(
    ("path", "kind", "step"),
    [
        ("runs/c2fmae", "pretraining", 4),
        ("runs/mae", "pretraining", 3),
        ("runs/finetuned", "finetuning", 4),
        ("runs/finetuned/best", "finetuning", 2),
    ],
)
def test_runs_are_described(path: str, kind: str, step: int) -> None:
    info = read_run_info(Path(path))
    assert (info.kind, info.step, info.num_samples) == (kind, step, 4 if path != "runs/mae" else 8)
    assert info.backbone.image_size == (16, 16)
    assert info.backbone.channels == ({"semantic": 3, "rgb": 3} if path == "runs/c2fmae" else {"rgb": 3})
    assert info.backbone.class_names[:1] == {"runs/c2fmae": ("wall",), "runs/mae": ("sky",)}.get(path, ())
    labels = [label and label.name for label in info.classifier.labels] if info.classifier else []
    assert labels == (["cat", "dog"] if kind == "finetuning" else [])
    for checkpoint in Path(path).rglob("step-*"):
        checkpoint.rename(checkpoint.with_name(".removed"))
    if Path(path, "config.yaml").exists():
        assert (read_run_info(Path(path)).kind, read_run_info(Path(path)).step) == (kind, None)


@pytest.mark.parametrize(
    ("source", "step"),
    [
        ("runs/c2fmae", 4),
        ("runs/mae", 3),
        ("runs/finetuned", 4),
        ("runs/finetuned/best/step-00000002", 2),
        ("export", None),
    ],
)
def test_backbones_load(source: str, step: int | None) -> None:
    backbone = load_backbone(source).eval()
    assert backbone.pooled(torch.zeros(2, 3, 16, 16)).shape == (2, 4)
    (file,) = [path for path in Path(source).rglob("*.safetensors") if step is None or f"step-{step:08d}" in str(path)]
    (stored,) = [
        tensor
        for name, tensor in load_file(file).items()
        if name.endswith("encoder.blocks.0.attn.qkv.weight") and not name.startswith(("optimiser/", "ema/"))
    ]
    assert torch.equal(backbone.encoder.blocks[0].attn.qkv.weight, stored)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(("run", "part"), [("runs/c2fmae", "model"), ("runs/mae", "model"), ("runs/mae", "ema")])
def test_runs_load_with_their_decoders(run: str, part: str) -> None:
    loaded = load_run(Path(run), use_ema=part == "ema")
    (file,) = Path(run).rglob("tensors.safetensors")
    stored = {
        name.removeprefix(f"{part}/"): each for name, each in load_file(file).items() if name.startswith(f"{part}/")
    }
    weights = loaded.method.model.state_dict()
    assert stored.keys() <= weights.keys()
    assert all(torch.equal(weights[name], each) for name, each in stored.items())
    assert run != "runs/c2fmae" or loaded.class_names == ("wall", "cat", "dog")


@pytest.mark.parametrize(("run", "step"), [("runs/c2fmae", 4), ("runs/mae", 3), ("runs/finetuned", 4)])
def test_doctor_finds_nothing_wrong(run: str, step: int) -> None:
    before = snapshot(run)
    report = run_command("doctor", run)
    assert f"step {step}" in report
    is_finetuned = run == "runs/finetuned"
    assert ("eval robustness" if is_finetuned else f"pretrain {run} --resume") in report.splitlines()[-1]
    assert snapshot(run) == before


def test_reconstructions_are_drawn() -> None:
    run_command("view", "reconstruct", "runs/c2fmae", "--visible", "rgb:all", "--set", "scenes=1")
    assert Path("reconstruct.png").is_file()


def test_nearest_neighbours_are_not_searched_again() -> None:
    before = snapshot("runs/mae/evaluations")
    run_command(*KNN, "--set", "workers=0")
    assert snapshot("runs/mae/evaluations") == before


def test_features_are_not_extracted_again() -> None:
    before = snapshot("runs/mae/evaluations/features")
    run_command(*KNN, "--set", "workers=0", "--recompute")
    after = snapshot("runs/mae/evaluations/features")
    chunks = [path for path in before if path.endswith(".safetensors")]
    assert after.keys() == before.keys()
    assert [after[path] for path in chunks] == [before[path] for path in chunks]


def test_cached_predictions_of_another_version_are_left_alone() -> None:
    """They are computed again under another name: their identity holds how that version named its views."""
    before = snapshot("runs/finetuned/evaluations/predictions")
    run_command(*ROBUSTNESS, "--set", "workers=0")
    after = snapshot("runs/finetuned/evaluations/predictions")
    assert before.items() <= after.items()


@pytest.mark.parametrize(
    ("words", "results"),
    [
        (KNN, ["runs/mae/evaluations/knn-*"]),
        (ROBUSTNESS, ["runs/finetuned/evaluations/finetune", "runs/finetuned/evaluations/robustness-*"]),
    ],
)
def test_results_are_on_the_page_of_the_run(words: tuple[str, ...], results: list[str]) -> None:
    stored = [read_json(str(next(Path().glob(f"{folder}/results.json")))) for folder in results]
    run_command(*words, "--set", "workers=0")
    page = html.unescape(Path(words[2], "report.html").read_text())
    for result in stored:
        assert result["protocol"] in page


def test_a_pack_opens_by_its_own_index() -> None:
    before = snapshot("data")
    scenes = open_scenes("data/pack")
    assert list(scenes.keys) == ["cat/cat-0", "cat/cat-2", "dog/dog-1", "dog/dog-3"]
    assert scenes.info.class_names == ("wall", "cat", "dog")
    assert scenes.info.label_names == ("cat", "dog")
    found = [scenes[index] for index in range(4)]
    assert [scene.label for scene in found] == [0, 0, 1, 1]
    assert {name: [int(scene.maps[name].sum()) for scene in found] for name in ("semantic", "instance", "rgb")} == {
        "semantic": [4, 4, 8, 8],
        "instance": [4, 4, 4, 4],
        "rgb": [73758, 81621, 76498, 83932],
    }
    assert snapshot("data") == before
    run_command("data", "check", "data/pack")


def test_a_corrupted_set_opens() -> None:
    scenes = open_scenes("data/corrupted/contrast/3", granularities=("rgb",))
    assert [scenes[index].maps["rgb"].shape for index in range(2)] == [(3, 32, 32)] * 2
    assert scenes.info.label_names == ("cat", "dog")


def test_masks_are_replayed() -> None:
    masks = Masks.load("masks.safetensors")
    assert masks.granularities == ("semantic", "rgb")
    assert masks.num_masked.tolist() == [[16, 4], [16, 4], [14, 6], [15, 5]]
    assert masks.visible_idx.sum(dim=1).tolist() == [267, 276, 243, 256]
    view, scenes = CentralView(size=(16, 16), label_stride=4), open_scenes("data/pack")
    batch = SceneBatch.stack([view(scenes[index]) for index in range(4)])
    predicted = load_run(Path("runs/c2fmae")).method.predict(batch, masks).maps
    assert {name: tuple(each.shape) for name, each in predicted.items()} == {
        "semantic": (4, 4, 4),
        "rgb": (4, 3, 16, 16),
    }


def test_a_recipe_is_run() -> None:
    small = ("training.steps=1", "training.warmup_steps=0", "training.batch_size=2", "watching.figures=0")
    changes = [word for change in (*small, "data.held_out=null") for word in ("--set", change)]
    run_command("pretrain", "recipe.yaml", "--out", "runs/new", *changes)
    assert read_json("runs/new/state.json")["status"] == "finished"
    assert load_run(Path("runs/new")).step == 1
