"""The card beside an export: what it is, what it is from, what is known of it and what is not."""

from collections.abc import Iterable, Sequence

import yaml

from c2fmae import __version__
from c2fmae.exports.provenance import WeightsProvenance
from c2fmae.exports.target import ExportableModel, ExportComparison, ExportTarget, get_backbone
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier

_LICENCE_COMMENT = "# license: not chosen. Whoever publishes these weights says here under which they are"
_LICENCE_TEXT = """\
## Licence

Not chosen by this export: whoever publishes these weights does, and adds it to the head of this card. What they were
trained on may set limits."""
_MAX_CLASS_NAMES = 5  # names of classes
_POOLING_TEXT = {"cls": "the global token", "mean": "the mean of the patches' tokens"}


def render_card(
    target: ExportTarget,
    provenance: WeightsProvenance,
    comparisons: Sequence[ExportComparison],
    sha256: str,
    folder: str,
) -> str:
    """Return the card in Markdown, with the head that model hubs read."""
    backbone = target.backbone
    task = "classification" if isinstance(target.model, Classifier) else "feature-extraction"
    head = yaml.safe_dump(
        {
            "library_name": target.library,
            "pipeline_tag": f"image-{task}",
            "tags": ["c2fmae", "masked-autoencoder", "vision-transformer"],
        },
        sort_keys=False,
    )
    parts = [
        f"---\n{head}{_LICENCE_COMMENT}\n---",
        f"# {_escape_cell(provenance.name)}",
        provenance.title and _escape_cell(provenance.title),
        f"## Load it\n\n```python\n{target.usage(folder)}\n```",
        "\n".join(f"- {note}" for note in [*_input_notes(backbone), *_class_notes(target.model), *target.notes]),
        _training_section(provenance),
        _metrics_section(provenance),
        _model_section(target.model),
        _verification_section(target, comparisons, sha256),
        _LICENCE_TEXT,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _input_notes(backbone: Backbone) -> list[str]:
    spec = backbone.spec
    notes = []
    if "rgb" in spec.channels:
        notes.append(
            f"Photos: {spec.channels['rgb']} channels, values in [0, 1], less the mean {_format_numbers(spec.mean)} "
            "and "
            f"divided by the standard deviation {_format_numbers(spec.std)}, channel by channel."
        )
    height, width = spec.image_size
    return [
        *notes,
        f"It is for images of {height}×{width} (height × width), patches of {backbone.patch}.",
        f"A vector for an image is {_POOLING_TEXT[spec.pool]}{', normed behind that' if spec.has_fc_norm else ''}.",
    ]


def _class_notes(model: ExportableModel) -> list[str]:
    if not isinstance(model, Classifier):
        return []
    names = [_escape_cell(label.name) for label in model.spec.labels if label]
    few = ", ".join(f"“{name}”" for name in names[:_MAX_CLASS_NAMES]) + (", …" if len(names) > _MAX_CLASS_NAMES else "")
    unnamed = model.num_labels - len(names)
    fragments = [*([few] if names else []), *([f"{unnamed:,} without a name"] if unnamed else [])]
    return [
        f"It tells {model.num_labels:,} classes apart: {'; '.join(fragments)}.",
        f"It was tried on photos' central {100 * model.spec.crop:.4g} %, brought to that size bicubically.",
    ]


def _training_section(provenance: WeightsProvenance) -> str:
    rows = _markdown_table(("What", "Known"), provenance.details.items())
    unknown = f"\n\nNot known here: {', '.join(provenance.missing_details)}." if provenance.missing_details else ""
    deviations = "".join(f"\n- {_escape_cell(each)}" for each in provenance.deviations)
    departs = f"\n\nWhere its recipe departs from its source:\n{deviations}" if deviations else ""
    return f"## How it was trained\n\n{rows}{unknown}{departs}"


def _metrics_section(provenance: WeightsProvenance) -> str:
    parts = ["## Numbers"]
    if provenance.held_out_metrics:
        metric_kind, subject = (
            ("score", "Scores of fine-tuning on photos")
            if provenance.is_finetuned
            else ("loss", "Losses of pre-training on scenes")
        )
        rows = _markdown_table(
            (f"Held-out {metric_kind}", "Value"),
            [(name, f"{value:.4g}") for name, value in provenance.held_out_metrics.items()],
        )
        parts.append(f"{subject} that it did not learn from, at step {provenance.metrics_step:,}:\n\n{rows}")
        if provenance.is_average:
            parts.append("They are of the weights as they were trained, not of their average, which this is.")
    else:
        parts.append("Losses on scenes that were held out: none were found.")
    if provenance.evaluations:
        header = ("Evaluation", "Of", "Metric", "Value (95 % interval)", "Count")
        rows = _markdown_table(
            header, [(e.evaluation, e.source, e.metric, e.value, e.count) for e in provenance.evaluations]
        )
        protocols = dict.fromkeys((e.evaluation, e.protocol) for e in provenance.evaluations if e.protocol)
        parts += [rows, "\n".join(f"- {_escape_cell(name)}: {_escape_cell(protocol)}" for name, protocol in protocols)]
    else:
        parts.append("Evaluations of its features: none were found beside it, so nothing is said of how good they are.")
    return "\n\n".join(part for part in parts if part)


def _model_section(model: ExportableModel) -> str:
    backbone = get_backbone(model)
    spec = backbone.spec
    head = f" A linear head of {model.num_labels:,} logits comes behind." if isinstance(model, Classifier) else ""
    count = sum(each.numel() for each in backbone.parameters())
    text = (
        f"## What it is\n\nA plain ViT, timm's `{spec.encoder.name}`: patches of {backbone.patch}, width "
        f"{backbone.dim}, {backbone.depth} blocks, {count:,} parameters with what embeds "
        f"{', '.join(backbone.granularities)}. Tokens that come before those of patches: {backbone.num_prefix_tokens}. "
        f"Positions are "
        f"{'a table' if spec.encoder.keep_positions else 'sines and cosines, computed for any size'}.{head}"
    )
    return "\n".join([text, "", *(f"- {_escape_cell(note)}" for note in model.load_report.notes)]).rstrip()


def _verification_section(target: ExportTarget, comparisons: Sequence[ExportComparison], sha256: str) -> str:
    rows = [
        (
            each.description,
            f"{each.difference:.1e}",
            f"{each.tolerance:.1e}" if each.tolerance is not None else f"none: {each.reason}",
        )
        for each in comparisons
    ]
    return (
        f"## Checked\n\nWritten by c2fmae {__version__}, read back by {target.tool} and compared with c2fmae on the "
        f"same generated photos.\n\n{_markdown_table(('Compared', 'Largest difference', 'Allowed'), rows)}\n\n"
        f"SHA-256 of `{target.weights_file}`: `{sha256}`"
    )


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_escape_cell(cell) for cell in line) + " |" for line in lines)


def _escape_cell(text: str) -> str:
    """Return text that stays in its line, and in its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _format_numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
