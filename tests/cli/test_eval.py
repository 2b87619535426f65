"""The command `c2fmae eval`."""

import json
from pathlib import Path

import pytest

from c2fmae.core.errors import UserError
from c2fmae.eval.builtin import EVALUATIONS
from tests.cli.commands import run_eval
from tests.exports.noise_sources import write_noise_run

pytestmark = pytest.mark.unchecked

OPTIONS = "{size: 32, length: 12}"
SMALL = ["--set", f"train.options={OPTIONS}", "--set", f"test.options={OPTIONS}", "--set", "workers=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise_run(tmp_path_factory.mktemp("runs") / "tiny")


def test_help_lists_every_evaluation_and_its_settings() -> None:
    text = run_eval("--help")
    for name in EVALUATIONS:
        assert name in text
        assert EVALUATIONS.describe(name)[:30] in " ".join(run_eval(name, "--help").split())
        assert EVALUATIONS.get(name).setting_names()[0] in run_eval(name, "--help")


def test_output_has_metrics_protocol_and_paths_of_results(run: Path) -> None:
    args = ("knn", str(run), "--data", "generated", "--untrained", "--set", "ks=[1, 3]", *SMALL)
    text = run_eval(*args)
    assert "top-1, plain votes, k = 3" in text
    assert f"untrained {run}" in text
    assert "Frozen features of images alone (layer " in text
    paths = [line.removeprefix("wrote ") for line in text.splitlines() if line.endswith("results.json")]
    assert [json.loads(Path(path).read_text())["source"] for path in paths] == [str(run), f"untrained {run}"]
    assert all(Path(path).is_relative_to(run / "evaluations") for path in paths)
    again = run_eval(*args)
    assert again.count("exists with these settings; --recompute ignores it") == 2


def test_out_has_a_directory_for_each_source(run: Path, tmp_path: Path) -> None:
    checkpoint = next((run / "checkpoints").iterdir())
    args = ("knn", str(run), str(checkpoint), "--data", "generated", "--out", str(tmp_path / "out"), "--set", "ks=[1]")
    text = run_eval(*args, *SMALL)
    assert len(list((tmp_path / "out").glob("*/knn-generated-*/results.json"))) == 2
    assert "the run's page" not in text


def test_errors_about_misspelt_names_suggest_the_nearest(run: Path) -> None:
    for args, message in (
        (("lineer", str(run)), "no evaluation named 'lineer'. Did you mean 'linear'?"),
        (("knn", str(run), "--data", "generated", "--set", "kss=[1]"), "kss: no such setting. Did you mean 'ks'?"),
        (("knn", str(run), "--data", "genrated"), "Did you mean 'generated'?"),
        (("knn", str(run)), "train: is required. Use --data"),
        (("cost", "c2fmae-tinyy"), "no recipe or method named 'c2fmae-tinyy'. Did you mean 'c2fmae-tiny'?"),
        (("attention", str(run), "--test", "there"), "--test: is not an option of this evaluation"),
    ):
        with pytest.raises(UserError) as caught:
            run_eval(*args)
        assert message in str(caught.value)


def test_generated_stands_for_the_scenes_of_the_run(run: Path, tmp_path: Path) -> None:
    text = run_eval("knn", str(run), "--data", "generated", "--untrained", "--set", "ks=[1]", *SMALL)
    assert "Fitted to generated, size 32, length 12, seed 1001, difficulty easy (12), tested on generated, " in text
    text = run_eval("attention", str(run), "--set", "images=4", "--set", "data.options.length=9", "--set", "workers=0")
    assert "Images: 4 evenly spaced ones of 9 of generated, size 32, length 9, seed 1002, difficulty easy." in text

    other = write_noise_run(tmp_path / "other", overrides=["data.train.options.difficulty=plain"])
    for words, choice in (
        (("knn", "--data", "generated", *SMALL), "--set train.options.difficulty=easy --set test.options.difficulty="),
        (("attention", "--set", "workers=0"), "--set data.options.difficulty=easy"),
        (("finetune", "--data", "generated"), "--set data.train.options.difficulty=easy --set data.test.options."),
    ):
        with pytest.raises(UserError) as caught:
            run_eval(words[0], str(run), str(other), *words[1:])
        assert str(caught.value).startswith(
            f"generated: {run} and {other} were trained on different scenes, of difficulty easy and plain. Choose one "
            f"with {choice}"
        )
    both = ("--set", "train.options.difficulty=hard", "--set", "test.options.difficulty=hard", "--set", "ks=[1]")
    text = run_eval("knn", str(run), str(other), "--data", "generated", *SMALL, *both)
    assert "Fitted to generated, size 32, length 12, seed 1001, difficulty hard (12)" in text


def test_a_limit_takes_evenly_spaced_images_and_identifies_the_result(run: Path, tmp_path: Path) -> None:
    args = ("knn", str(run), "--data", "generated", "--set", "ks=[1]", *SMALL, "--out", str(tmp_path))
    text = run_eval(*args, "--limit", "5")
    assert "difficulty easy, 5 evenly spaced of 12 (5), tested on " in text
    text = run_eval(*args, "--limit", "6")
    assert len(list(tmp_path.glob("knn-*/results.json"))) == 2
    assert "difficulty easy (12), tested on " in run_eval(*args)
    assert "exists with these settings" in run_eval(*args, "--limit", "12")
    args = ("representation", str(run), "--set", "data.options.length=9", "--set", "workers=0", "--out", str(tmp_path))
    assert "Images: 4 evenly spaced ones of 9 of generated" in run_eval(*args, "--limit", "4")
