"""The model card of an export, README.md: usage, training, evaluation results and the verification of the export."""

import re
from collections.abc import Iterable, Sequence

import yaml

from c2fmae import __version__
from c2fmae.core.operation_count import count_parameters
from c2fmae.core.text import escape_controls, format_count
from c2fmae.exports.provenance import WeightsProvenance
from c2fmae.exports.target import ExportableModel, ExportComparison, ExportTarget, get_backbone
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier
from c2fmae.models.segmenters import Segmenter

_LICENCE_COMMENT = "# license: not chosen. Add the licence here before publishing"
_LICENCE_TEXT = """\
## Licence

Not chosen. Add it to the metadata at the top of this card before publishing; the training data may restrict it."""
_MAX_CLASS_NAMES = 5
_POOLING_TEXT = {"cls": "the class token", "mean": "the mean of the patch tokens"}


def render_card(
    target: ExportTarget,
    provenance: WeightsProvenance,
    comparisons: Sequence[ExportComparison],
    sha256: str,
    folder: str,
) -> str:
    """Return the card as Markdown, with the YAML metadata that model hubs read."""
    backbone = target.backbone
    model = target.model
    task = "segmentation" if isinstance(model, Segmenter) else "feature-extraction"
    task = "classification" if isinstance(model, Classifier) else task
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
        f"# {_escape_markdown(provenance.name)}",
        provenance.title and _escape_markdown(provenance.title),
        f"## Usage\n\n```python\n{target.usage(folder)}\n```",
        "\n".join(
            f"- {note}"
            for note in [
                *_input_notes(backbone),
                *_output_notes(model),
                *target.notes,
                *map(_escape_markdown, target.cautions),
            ]
        ),
        _training_section(provenance),
        _metrics_section(provenance),
        _model_section(model),
        _verification_section(target, comparisons, sha256),
        _LICENCE_TEXT,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _input_notes(backbone: Backbone) -> list[str]:
    spec = backbone.spec
    notes = []
    if "rgb" in spec.channels:
        notes.append(
            f"Images: {format_count(spec.channels['rgb'], 'channel')}, values in [0, 1], standardised by "
            f"channel with mean {_format_numbers(spec.mean)} and standard deviation {_format_numbers(spec.std)}."
        )
    height, width = spec.image_size
    return [*notes, f"Image size: {height}×{width} (height × width), patch size {backbone.patch}."]


def _output_notes(model: ExportableModel) -> list[str]:
    if isinstance(model, Segmenter):
        return [f"Classes: {model.num_classes:,} ({_list_names([entry.name for entry in model.spec.classes])})."]
    spec = get_backbone(model).spec
    pooled = f"Pooled features: {_POOLING_TEXT[spec.pool]}{', then a norm' if spec.has_fc_norm else ''}."
    if not isinstance(model, Classifier):
        return [pooled]
    names = [label.name for label in model.spec.labels if label]
    unnamed = model.num_labels - len(names)
    fragments = [*([_list_names(names)] if names else []), *([f"{unnamed:,} without a name"] if unnamed else [])]
    return [
        pooled,
        f"Classes: {model.num_labels:,} ({'; '.join(fragments)}).",
        f"Evaluation crop: the central {100 * model.spec.crop:.4g} % of an image, resized to the image size (bicubic).",
    ]


def _list_names(names: Sequence[str]) -> str:
    first = ", ".join(f"“{_escape_markdown(name)}”" for name in names[:_MAX_CLASS_NAMES])
    return first + (", …" if len(names) > _MAX_CLASS_NAMES else "")


def _training_section(provenance: WeightsProvenance) -> str:
    rows = _markdown_table(("Detail", "Value"), provenance.details.items())
    unknown = f"\n\nUnknown: {', '.join(provenance.missing_details)}." if provenance.missing_details else ""
    items = "".join(f"\n- {_escape_markdown(deviation)}" for deviation in provenance.deviations)
    deviations = f"\n\nDeviations of its recipe from the recipe's source:\n{items}" if items else ""
    return f"## Training\n\n{rows}{unknown}{deviations}"


def _metrics_section(provenance: WeightsProvenance) -> str:
    parts = ["## Results"]
    if provenance.held_out_metrics:
        name, description = (
            ("Test score", "Scores on the test set")
            if provenance.is_finetuned
            else ("Held-out loss", "Pre-training losses on held-out scenes")
        )
        rows = _markdown_table(
            (name, "Value"), [(name, f"{value:.4g}") for name, value in provenance.held_out_metrics.items()]
        )
        parts.append(f"{description} at step {provenance.metrics_step:,}:\n\n{rows}")
        if provenance.is_ema:
            parts.append("These are losses of the trained weights; the exported weights are their average.")
    else:
        parts.append("No losses or scores on held-out data were found.")
    if provenance.evaluations:
        header = ("Evaluation", "Source", "Metric", "Value (95 % interval)", "Count")
        rows = _markdown_table(
            header, [(e.evaluation, e.source, e.metric, e.value, e.count) for e in provenance.evaluations]
        )
        protocols = dict.fromkeys((e.evaluation, e.protocol) for e in provenance.evaluations if e.protocol)
        parts += [
            rows,
            "\n".join(f"- {_escape_markdown(name)}: {_escape_markdown(protocol)}" for name, protocol in protocols),
        ]
    else:
        parts.append("No evaluation results of these weights were found in the run directory.")
    return "\n\n".join(part for part in parts if part)


def _model_section(model: ExportableModel) -> str:
    backbone = get_backbone(model)
    spec = backbone.spec
    head = f" A linear head with {model.num_labels:,} logits follows." if isinstance(model, Classifier) else ""
    count = count_parameters(backbone)
    if isinstance(model, Segmenter):
        head = (
            f" The segmentation head `{model.spec.head.name}` follows, with {count_parameters(model) - count:,} "
            f"parameters including its pyramid, on the outputs of blocks {', '.join(map(str, model.spec.depths))}."
        )
    text = (
        f"## Architecture\n\nA plain ViT, timm's `{spec.encoder.name}`: patch size {backbone.patch}, width "
        f"{backbone.dim}, {format_count(backbone.depth, 'block')}, {count:,} parameters including the embeddings of "
        f"{_escape_markdown(', '.join(backbone.granularities))}. Prefix tokens: {backbone.num_prefix_tokens}. Position "
        f"embeddings: {'a table' if spec.encoder.keep_positions else 'sines and cosines, stretched to any size'}.{head}"
    )
    return "\n".join([text, "", *(f"- {_escape_markdown(note)}" for note in model.load_report.notes)]).rstrip()


def _verification_section(target: ExportTarget, comparisons: Sequence[ExportComparison], sha256: str) -> str:
    rows = [
        (
            comparison.description,
            f"{comparison.difference:.1e}",
            f"{comparison.tolerance:.1e}" if comparison.tolerance is not None else f"not checked: {comparison.reason}",
        )
        for comparison in comparisons
    ]
    return (
        f"## Verification\n\nWritten by c2fmae {__version__}, reloaded with {target.tool} and compared with c2fmae on "
        f"the same generated images.\n\n{_markdown_table(('Outputs', 'Largest difference', 'Tolerance'), rows)}\n\n"
        f"SHA-256 of `{target.weights_file}`: `{sha256}`"
    )


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [[_escape_markdown(cell) for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape_markdown(text: str) -> str:
    """Return text on one line that Markdown shows literally: names in it are neither markup nor HTML.

    Underscores inside words, which are no markup, stay as they are.
    """
    line = escape_controls(" ".join(text.split()))
    line = re.sub(r"[\\`*~\[\]<>|]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)
    line = re.sub(r"^(?=[#+=-]+( |$))", r"\\", line)  # a heading, list or rule
    return re.sub(r"^(\d+)(?=[.)]( |$))", r"\1\\", line)


def _format_numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
