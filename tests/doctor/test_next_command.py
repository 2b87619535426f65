"""The commands that `c2fmae doctor` suggests, in every state of a run: each is parsed, and run where it can be."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from c2fmae_cli import app

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import RunDir
from c2fmae.data import open_scenes
from c2fmae.data.pack import PackConfig, pack_scenes
from c2fmae.doctor.run import diagnose_run
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.classification.experiment import finetune
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import load_recipe
from tests.cli.parsing import parse_command, split_commands
from tests.doctor.runs import corrupt_checkpoint
from tests.eval.classification.tiny_finetuning import (
    QUICK_OVERRIDES,
    write_pretrained_checkpoint,
    write_train_test_sets,
)

pytestmark = pytest.mark.unchecked

SHORT = ("training.steps=3", "training.warmup_steps=1", "saving.steps=1", "saving.keep_last=3", "watching.figures=0")


@dataclass(frozen=True)
class Workspace:
    """The directory that a test works in, with the run `run` on the data `data`."""

    run_dir: RunDir

    def write_state(self, status: str, step: int) -> None:
        """Replace the state of the run."""
        (self.run_dir.path / "state.json").write_text(json.dumps({"status": status, "step": step}))

    def interrupt(self) -> None:
        """Leave the run as it was when it was killed in its last step."""
        shutil.rmtree(self.run_dir.checkpoints / "step-00000003")
        self.write_state("running", 0)

    def lose_checkpoints(self) -> None:
        """Damage all checkpoints."""
        for path in list(self.run_dir.checkpoints.iterdir()):
            corrupt_checkpoint(self.run_dir, int(path.name.removeprefix("step-")))

    def edit_config(self, old: str, new: str) -> None:
        """Change the text of the config."""
        text = self.run_dir.config_path.read_text()
        assert old in text
        self.run_dir.config_path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a finished run and its data."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(root)
        pack_scenes(open_scenes("generated", size=64, length=16), Path("data"), PackConfig(), workers=1)
        overrides = ["data.train=data", "data.held_out=null", "data.cache=false", *SHORT]
        assert pretrain(load_recipe("c2fmae-debug", overrides), Path("run")).status == "finished"
    return root


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return Workspace(RunDir(Path("run")))


def run_suggestion(text: str) -> None:
    """Parse all commands of a suggestion, then run them; `DATA` is the place where the data is now."""
    for words in split_commands(text):
        if words[0] != "c2fmae":
            subprocess.run(words, check=True)
            continue
        parse_command(words)
        exit_code = app([word.replace("DATA", "moved") for word in words[1:]], standalone_mode=False)
        assert not exit_code


def move_data(_: Workspace) -> None:
    Path("data").rename("moved")


STATES: dict[str, tuple[str, list[Callable[[Workspace], object]]]] = {
    "finished": ("c2fmae view reconstruct run", []),
    "finished, data moved": ("c2fmae view reconstruct run --data DATA", [move_data]),
    "finished, checkpoints damaged": (
        "mv run/checkpoints run/checkpoints.damaged && c2fmae pretrain run --resume  # starts again",
        [Workspace.lose_checkpoints],
    ),
    "finished, checkpoints removed": (
        "c2fmae pretrain run --resume",
        [lambda work: shutil.rmtree(work.run_dir.checkpoints)],
    ),
    "new": (
        "c2fmae pretrain run --resume",
        [
            lambda work: shutil.rmtree(work.run_dir.checkpoints),
            lambda work: work.run_dir.metrics.unlink(),
            lambda work: (work.run_dir.path / "state.json").unlink(),
        ],
    ),
    "interrupted": ("c2fmae pretrain run --resume", [Workspace.interrupt]),
    "newest checkpoint damaged": (
        "c2fmae pretrain run --resume",
        [Workspace.interrupt, lambda work: corrupt_checkpoint(work.run_dir, 2)],
    ),
    "interrupted, checkpoints damaged": (
        "mv run/checkpoints run/checkpoints.damaged && c2fmae pretrain run --resume  # starts again",
        [Workspace.interrupt, Workspace.lose_checkpoints],
    ),
    "interrupted, data moved": (
        "c2fmae pretrain run --resume --accept-changes --set data.train=DATA",
        [Workspace.interrupt, move_data],
    ),
    "config edited": (
        "c2fmae pretrain run --resume --accept-changes",
        [Workspace.interrupt, lambda work: work.edit_config("weight_decay: 0.05", "weight_decay: 0.04")],
    ),
}


@pytest.mark.parametrize(("command", "changes"), STATES.values(), ids=STATES)
def test_the_suggested_command_succeeds(
    command: str, changes: list[Callable[[Workspace], object]], workspace: Workspace
) -> None:
    for change in changes:
        change(workspace)
    assert diagnose_run(Path("run")).next_command == command
    run_suggestion(command)
    assert diagnose_run(Path("run")).next_command.startswith("c2fmae view reconstruct run")


def test_all_problems_of_an_invalid_config_are_listed_with_its_file(workspace: Workspace) -> None:
    workspace.edit_config("weight_decay: 0.05", "weight_decay: lots")
    workspace.edit_config("batch_size: 8", "batch_siez: 8")
    diagnosis = diagnose_run(Path("run"))
    assert diagnosis.next_command == "c2fmae doctor run  # after the fixes"
    assert len(diagnosis.problems) == 2
    for problem, key in zip(diagnosis.problems, ("training.weight_decay", "training.batch_siez"), strict=True):
        assert problem.startswith(f"run/config.yaml: {key}: ")
        assert problem.endswith("Restore the setting")
    workspace.run_dir.config_path.write_text("training: [\n")
    (problem,) = diagnose_run(Path("run")).problems
    assert problem.startswith("run/config.yaml: line 2")


def test_the_package_of_a_missing_plug_in_is_named_if_it_is_recorded(workspace: Workspace) -> None:
    workspace.edit_config("name: progressive", "name: stripes")
    (problem,) = [text for text in diagnose_run(Path("run")).problems if "stripes" in text]
    assert problem.startswith("run/config.yaml: method.masking.name: no mask named 'stripes'. Known: ")
    assert "No installed plug-in registers it" in problem
    environment = json.loads(workspace.run_dir.environment_path.read_text())
    environment["plugins"] = {"c2fmae-stripes": {"mask": ["stripes"]}}
    workspace.run_dir.environment_path.write_text(json.dumps(environment))
    (problem,) = [text for text in diagnose_run(Path("run")).problems if "stripes" in text]
    assert problem.endswith(
        "The package c2fmae-stripes registered it for this run and is not installed. Run: pip install c2fmae-stripes"
    )


def test_a_checkpoint_of_another_run_is_a_problem(workspace: Workspace) -> None:
    workspace.interrupt()
    environment = json.loads(workspace.run_dir.environment_path.read_text())
    workspace.run_dir.environment_path.write_text(json.dumps(environment | {"run_id": "0" * 16}))
    diagnosis = diagnose_run(Path("run"))
    assert "is a checkpoint of another run" in diagnosis.problems[0]
    assert diagnosis.next_command == "c2fmae doctor run  # after the fixes"


def test_a_fine_tuned_run_is_resumed_and_then_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root, source = write_train_test_sets(Path("sets")), write_pretrained_checkpoint(Path("source"))
    values = {"init": str(source), "data": {"train": str(root / "train"), "test": str(root / "test")}}
    overrides = [*QUICK_OVERRIDES, "saving.steps=3"]
    finetune(FinetuneConfig.from_dict(values, overrides), Path("run"), World())
    assert diagnose_run(Path("run")).next_command == "c2fmae eval robustness run --custom NAME=DIR"
    parse_command(["c2fmae", "eval", "robustness", "run", "--custom", "NAME=DIR"])
    work = Workspace(RunDir(Path("run")))
    shutil.rmtree(work.run_dir.checkpoints / "step-00000006")
    work.write_state("running", 0)
    (root / "test").rename("moved")
    diagnosis = diagnose_run(Path("run"))
    assert [problem.split(": ")[:2] for problem in diagnosis.problems] == [["run/config.yaml", "data.test"]]
    assert diagnosis.next_command == "c2fmae eval finetune run --resume --accept-changes --set data.test=DATA"
    run_suggestion(diagnosis.next_command)
    assert diagnose_run(Path("run")).next_command == "c2fmae eval robustness run --custom NAME=DIR"
    with pytest.raises(UserError):
        diagnose_run(Path("sets"))
