"""The model card of an export: it states what is known and lists what is unknown."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from c2fmae.core.checkpoint import load_checkpoint
from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.core.metric_rows import RowWriter
from c2fmae.core.run_dir import RunDir
from c2fmae.core.text import escape_controls
from c2fmae.eval.cache import compute_weights_digest
from c2fmae.eval.metrics import Metric
from c2fmae.exports import export
from c2fmae.exports.as_timm import timm_target
from c2fmae.exports.export import write_export
from c2fmae.exports.provenance import EvaluationRow, WeightsProvenance, read_provenance
from c2fmae.models.backbones import load_backbone
from tests.exports.noise_sources import make_noise_backbone, write_noise_run
from tests.models.classifiers.noise_classifiers import make_noise_classifier
from tests.report.parsed_page import ParsedPage

RESULT = {
    "evaluation": "knn",
    "source": "/home/somebody/runs/tiny",
    "protocol": "k-NN of 10 on\nfrozen | features.",
    "metrics": [
        Metric("train_test_overlap", 7.25, 2000).to_json(),
        *(
            Metric("top1", value, 2000, (49.0, 53.5), tags={"k": k, "votes": votes}, notes=("exact",)).to_json()
            for value, k, votes in ((50.25, 5, "plain"), (51.25, 20, "weighted"), (52.25, 50, "weighted"))
        ),
    ],
}
FORMAT_1_RESULT = RESULT | {
    "evaluation": "linear",
    "metrics": [
        {"name": "accuracy", "value": 0.51234, "count": 1000, "interval": [0.48, 0.54]},
        {"name": "accuracy of layer 3", "value": 0.4, "count": 1000, "interval": None},
    ],
}


def measured(run: Path) -> Path:
    with RowWriter(RunDir(run).metrics) as rows:
        rows.write({"step": 10, "held_out/loss": 3.0, "held_out/rgb": 0.75})
        rows.write({"step": 20, "held_out/loss": 2.0, "held_out/rgb": 0.5})
        rows.write({"step": 20, "loss": 1.0})
        rows.write({"step": 30, "held_out/loss": 1.0, "held_out/rgb": 0.25})  # after the checkpoint
    digest = compute_weights_digest(load_backbone(run))
    for name, weights, result in (
        ("knn-1", digest, RESULT),
        ("knn-1-untrained", "those of another", RESULT),
        ("linear-1", digest, FORMAT_1_RESULT),
    ):
        (run / "evaluations" / name).mkdir(parents=True)
        result = result | {"weights": weights, "source": f"/home/somebody/runs/{name}"}
        (run / "evaluations" / name / "results.json").write_text(json.dumps(result))
    (run / "environment.json").write_text(json.dumps({"c2fmae": "0.1.0", "torch": {"version": "2.14"}}))
    return run


def test_a_card_describes_a_run(tmp_path: Path) -> None:
    run = measured(write_noise_run(tmp_path / "run", overrides=["data.train=/home/somebody/data/voc-{000..012}.tar"]))
    done = export("timm", run, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.license is None
    for line in (
        "# c2fmae-debug",
        "| Data | voc-{000..012}.tar |",
        "| Samples | 1,234 |",
        "| Weights | step 20 of 20 |",
        "| Granularities, coarse to fine | semantic, instance, rgb |",
        "| Masking | progressive, curriculum triangle, blend topk, object share 0.75 |",
        "| Made with | c2fmae 0.1.0, PyTorch 2.14 |",
        "- changed: data.train=voc-{000..012}.tar",
        "| loss | 2 |",
        "| rgb | 0.5 |",
        "| knn | knn-1 | top-1, k = 20, weighted votes (exact) | 51.25 (49 to 53.5) | 2,000 |",
        "| linear | linear-1 | accuracy | 0.5123 (0.48 to 0.54) | 1,000 |",
        "- knn: k-NN of 10 on frozen \\| features.",
        "- it was trained without a norm after the last block: a new one with weight 1 and bias 0 was added",
        f"SHA-256 of `model.safetensors`: `{done.sha256}`",
    ):
        assert line in card.text.splitlines(), line
    assert "mean (0.485, 0.456, 0.406)" in card.text
    assert f"| {done.max_difference:.1e} |" in card.text
    assert 'timm.create_model("local-dir:out", pretrained=True)' in card.text
    assert "knn-1-untrained" not in card.text  # those are numbers of other weights
    assert [number for number in ("50.25", "52.25", "7.25", "layer 3") if number in card.text] == []  # no headlines
    assert "Unknown" not in card.text
    assert "/home/somebody" not in card.text
    assert str(tmp_path) not in card.text


def test_a_card_lists_what_is_unknown(tmp_path: Path) -> None:
    backbone = make_noise_backbone(keep_positions=True)
    write_export(
        timm_target(backbone), read_provenance(f"timm:test_vit@{tmp_path / 'weights.safetensors'}"), tmp_path / "out"
    )
    text = ModelCard.load(tmp_path / "out" / "README.md").text
    assert "Unknown: data, steps, training options." in text
    assert "| Source | timm:test_vit@weights.safetensors, which holds weights and no record of their training |" in text
    assert "No losses or scores on held-out data were found." in text
    assert "No evaluation results of these weights were found in the run directory." in text
    assert "without a norm" not in text
    assert str(tmp_path) not in text


def test_a_checkpoint_has_the_provenance_of_its_run_while_it_is_inside(tmp_path: Path) -> None:
    run = measured(write_noise_run(tmp_path / "run"))
    checkpoint = run / "checkpoints" / "step-00000020"
    assert read_provenance(str(checkpoint)) == read_provenance(str(run))
    assert read_provenance(str(run)).held_out_metrics == {"loss": 2.0, "rgb": 0.5}
    alone = checkpoint.rename(tmp_path / "step-00000020")
    assert load_checkpoint(alone).step == 20
    origin = read_provenance(str(alone))
    assert (origin.name, origin.held_out_metrics, origin.evaluations) == ("c2fmae-debug", None, [])


def test_a_card_of_averaged_weights_states_that_its_losses_are_not_theirs(tmp_path: Path) -> None:
    run = measured(write_noise_run(tmp_path / "run"))
    origin = read_provenance(str(run), use_ema=True)
    assert origin.details["Weights"] == "average of the weights at step 20 of 20"
    write_export(timm_target(make_noise_backbone()), origin, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "These are losses of the trained weights; the exported weights are their average." in text


HOSTILE_NAMES = (
    '<img src="x" onerror="alert(1)">',
    "[free](javascript:alert(1)) **bold** _em_ __dunder__ ~~gone~~",
    "![pixel](https://example.org/pixel.png)",
    "`code` | another cell &lt;script&gt;",
    "two\nlines\r\n# and a heading",
    "\x1b[31mred \u202egnp.exe",
    "# heading",
    "- item",
    "1. item",
    "---",
    "snake_case_name-12.5",
)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_are_shown_literally_by_a_card(name: str, tmp_path: Path) -> None:
    row = EvaluationRow(evaluation=name, source=name, metric=name, value="1", count="1", weights="", protocol=name)
    origin = WeightsProvenance(name=name, title=name, details={name: name}, deviations=[name], evaluations=[row])
    model = make_noise_classifier(labels=[LabelInfo(name=name), LabelInfo(name="other")])
    write_export(timm_target(model), origin, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md").text
    assert "\x1b" not in card
    assert "\u202e" not in card
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(card)
    page = ParsedPage(html)
    tags = [tag for tag, _ in page.elements]
    assert {"img", "a", "em", "strong", "s", "hr", "ol", "script"}.isdisjoint(tags)
    assert page.text.count(escape_controls(" ".join(name.split()))) == 11


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"evaluation": "knn"}', '{"evaluation": "knn", "metrics": [{"name": "x"}]}']
)
def test_an_error_names_an_unreadable_evaluation_result(content: str, tmp_path: Path) -> None:
    run = measured(write_noise_run(tmp_path / "run"))
    file = run / "evaluations" / "knn-1" / "results.json"
    file.write_text(content)
    with pytest.raises(
        UserError, match=r": (is not an evaluation result: |is not JSON |expected a JSON object)"
    ) as caught:
        read_provenance(str(run))
    assert str(caught.value).startswith(f"{file}: ")
    assert str(caught.value).endswith(". Repeat the evaluation, or remove the file")
