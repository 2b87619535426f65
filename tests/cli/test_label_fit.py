"""`c2fmae label --fit`: clusters are found first, and once."""

from pathlib import Path

import pytest
from c2fmae_cli import app
from typer.testing import CliRunner

from c2fmae.data.info import DatasetInfo
from tests.eval.classification.tiny_finetuning import write_pretrained_checkpoint
from tests.labelling.simple_labellers import write_images


@pytest.mark.unchecked
def test_clusters_are_found_before_images_are_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", 6)
    spec = f"clusters:{write_pretrained_checkpoint(tmp_path / 'run')},clusters.safetensors"
    settings = ["semantics.grid_size=4", "semantics.fit.num_clusters=3"]
    command = ["label", "images", "maps", "--semantics", spec, "--device", "cpu", "--workers", "0"]
    command += [f"--set={setting}" for setting in settings]
    runner = CliRunner()
    outcomes = [
        runner.invoke(app, [*command, *options]) for options in ([], ["--fit", "--dry-run"], ["--fit"], ["--fit"])
    ]
    assert [outcome.exit_code for outcome in outcomes] == [1, 1, 0, 0]  # `main` turns the first two into 2
    for outcome, message in zip(
        outcomes, ("clusters.safetensors: does not exist. Add --fit", "--fit: writes a file"), strict=False
    ):
        assert message in str(outcome.exception)
    assert "wrote clusters.safetensors: 3 clusters of 96 patches" in outcomes[2].stdout
    assert "wrote clusters.safetensors" not in outcomes[3].stdout
    assert "wrote maps: 6 images in 1 shard (1 existed)" in outcomes[3].stdout
    info = DatasetInfo.read_from_dir(tmp_path / "maps")
    assert info is not None
    assert info.class_names == ("cluster 0", "cluster 1", "cluster 2")
    assert info.maps_know_labels is False
