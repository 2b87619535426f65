"""`c2fmae view …` in this process; tests/cli/test_command.py has it in processes of their own."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
from c2fmae_cli import app
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from c2fmae.core.errors import UserError
from c2fmae.data import open_scenes
from c2fmae.report.drawing import MARGIN
from c2fmae.views import reconstruction
from tests.methods.tiny_methods import build_tiny_method
from tests.views.sheets import RecordedSheet

pytestmark = pytest.mark.unchecked

SMALL = ["--set", "scenes=2", "--set", "size=64"]


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_view(*words: str) -> list[str]:
    """Return the lines that a command prints."""
    done = CliRunner().invoke(app, ["view", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout.splitlines()


def refuse_view(*words: str) -> str:
    """Return the error of a command."""
    with pytest.raises(UserError) as caught:
        run_view(*words)
    return str(caught.value)


def test_masks_are_drawn_and_the_file_is_named() -> None:
    assert run_view("masks", "--out", "deep/masks.png", *SMALL) == [
        "wrote deep/masks.png",
        "next: c2fmae view schedule --data generated",
    ]
    with Image.open("deep/masks.png") as figure:
        assert figure.width > 11 * 64
        assert figure.height > 2 * 64


def test_explain_prints_requested_and_masked_patches_of_each_region() -> None:
    lines = run_view("masks", "--explain", *SMALL, "--set", "patch=8", "--set", "progress=[0.5]")
    assert lines[0] == "wrote masks.png"
    assert lines[1:3] == ["", "Masked patches by region"]
    assert lines[3].split() == [
        "scene",
        "mask",
        "region",
        "patches",
        "semantic-guided",
        "instance-guided",
        "random",
        "50%",
    ]
    (objects,) = (line for line in lines if line.startswith("00000001  rgb   objects "))
    assert len(objects.split(" / ")) == 5
    assert lines[-3].startswith("Each cell: patches that the policy masks on average / patches masked here.")


def test_saved_masks_are_drawn_and_explained() -> None:
    saved = run_view("masks", "--save-masks", "masks.safetensors", *SMALL, "--set", "progress=[0.5]")
    assert saved == [
        "wrote masks.safetensors",
        "wrote masks.png",
        "next: c2fmae view masks --data generated --masks masks.safetensors "
        "--set scenes=2 --set size=64 --set 'progress=[0.5]'",
    ]
    lines = run_view("masks", "--masks", "masks.safetensors", "--explain", *SMALL, "--set", "progress=[0, 1]")
    assert lines[0] == "wrote masks.png"
    assert lines[3].split() == ["scene", "mask", "region", "patches", "0%", "100%"]


def test_mask_files_that_cannot_be_used_are_errors() -> None:
    assert refuse_view("masks", "--save-masks", "masks.safetensors", *SMALL) == (
        "--save-masks: expected one point of training, got 5. Choose one, as in --set progress=[0.5]"
    )
    assert refuse_view("masks", "--save-masks", "a.safetensors", "--masks", "b.safetensors") == (
        "--save-masks: cannot be combined with --masks. Leave one of them out"
    )
    assert refuse_view("masks", "--masks", "none.safetensors") == (
        "none.safetensors: cannot be read: No such file or directory. Check the path, or restore the file"
    )
    Path("junk.safetensors").write_bytes(b"junk")
    assert refuse_view("masks", "--masks", "junk.safetensors").startswith("junk.safetensors: cannot read masks")
    run_view("masks", "--save-masks", "masks.safetensors", *SMALL, "--set", "progress=[0.5]")
    assert refuse_view("masks", "--masks", "masks.safetensors") == (
        "masks.safetensors: has masks of 16 patches, but size=224 and patch=16 make 196. "
        "Set size and patch to those of the masks"
    )
    assert not Path("b.png").exists()


def test_schedules_are_drawn() -> None:
    settings = ["scenes=2", "size=64", "points=5", "masking.options.curriculum.name=cosine"]
    lines = run_view("schedule", *(word for setting in settings for word in ("--set", setting)))
    assert lines == ["wrote schedule.png", "next: c2fmae view masks --data generated"]
    assert Path("schedule.png").is_file()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("", "'.': not a PNG file name. Use a name that ends in .png"),
        ("masks.jpg", "'masks.jpg': not a PNG file name. Use a name that ends in .png"),
        ("directory.png", "directory.png: exists and is not a file. Use another name"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_data_is_read(out: str, message: str) -> None:
    Path("directory.png").mkdir()
    assert refuse_view("masks", "--data", "none", "--out", out) == message


@pytest.fixture
def load_calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The arguments of each call of `load_run`, which returns a run in memory."""
    calls: list[object] = []
    method = build_tiny_method("c2fmae", "channels.semantic=23", "channels.instance=32")

    def load_run(path: Path, *, step: int | None = None, use_ema: bool = False) -> SimpleNamespace:
        calls.append((path, step, use_ema))
        return SimpleNamespace(config=None, method=method, step=step or 7, class_names=("sky",))

    monkeypatch.setattr("c2fmae.loading.load_run", load_run)
    monkeypatch.setattr("c2fmae.loading.open_run_scenes", lambda _: open_scenes("generated", size=48, length=9))
    return calls


@pytest.fixture
def sheet(monkeypatch: pytest.MonkeyPatch) -> RecordedSheet:
    return RecordedSheet(monkeypatch, reconstruction)


def test_reconstruct_draws_held_out_scenes_with_the_masks_of_training(
    load_calls: list[object], sheet: RecordedSheet
) -> None:
    assert run_view("reconstruct", "runs/first", "--out", "all.png", "--set", "scenes=2") == [
        "wrote all.png",
        "next: c2fmae view reconstruct runs/first --visible rgb:all",
    ]
    assert load_calls == [(Path("runs/first"), None, False)]
    assert sheet.texts["row_titles"] == ["00000002", "00000006"]
    assert sheet.texts["subtitle"].startswith("runs/first, step 7 · visible of 4 patches each: ")
    with Image.open("all.png") as figure:
        assert figure.width > 10 * 128


def test_reconstruct_takes_step_weights_data_and_visible_patches(
    load_calls: list[object], sheet: RecordedSheet, tmp_path: Path
) -> None:
    Image.new("RGB", (90, 60), "teal").save("one.png")
    words = ["--data", str(tmp_path), "--visible", "rgb:50%", "--step", "3", "--ema", "--out", "out/a.png"]
    assert run_view("reconstruct", "a run", *words)[-1] == "next: c2fmae view reconstruct 'a run' --visible rgb:25%"
    assert load_calls == [(Path("a run"), 3, True)]
    assert sheet.texts["row_titles"] == ["one"]
    assert sheet.texts["subtitle"] == ("a run, step 3 · visible of 4 patches each: semantic none, instance none, rgb 2")
    run_view("reconstruct", "a run", "--data", "generated", "--visible", "instance:1", "--out", "b.png")
    assert len(sheet.columns["image"]) == 6


def test_attention_and_pca_are_drawn_for_several_sources() -> None:
    save_file(timm.create_model("test_vit").state_dict(), "vit.safetensors")
    source = "timm:test_vit@vit.safetensors"
    settings = ["--set", "scenes=2", "--set", "size=[64, 64]"]
    assert run_view("attention", source, source, *settings) == [
        "wrote attention.png",
        f"next: c2fmae eval attention {source} {source} --data generated",
    ]
    assert run_view("pca", source, *settings) == [
        "wrote pca.png",
        f"next: c2fmae eval representation {source} --data generated",
    ]
    with Image.open("attention.png") as figure:
        assert figure.width > 3 * 224 + 2 * MARGIN
    assert refuse_view("attention", source, "--set", "layers=3") == (
        "view attention: layers: no such setting. Did you mean 'layer'?"
    )
    assert refuse_view("pca", source, "--set", "layer=0") == (
        "view pca: layer: input should be greater than or equal to 1, got 0"
    )


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("masks", "data.…, scenes, size, patch, seed, hidden, masking.…, progress."),
        ("reconstruct", "data.…, scenes, seed."),
        ("pca", "data.…, scenes, size, layer, seed."),
    ],
)
def test_help_lists_the_settings_of_the_config_class(command: str, settings: str) -> None:
    text = " ".join("\n".join(run_view(command, "--help")).split())
    assert f"Settings for --set: {settings}" in text
