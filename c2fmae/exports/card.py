"""The card beside an export: what it is, what it is from, what is known of it and what is not."""

from collections.abc import Iterable, Sequence

import yaml

from c2fmae import __version__
from c2fmae.exports.provenance import Origin
from c2fmae.exports.target import Comparison, Model, Target, backbone_of
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier

_LICENCE = "# license: not chosen. Whoever publishes these weights says here under which they are"
_LICENCE_TEXT = """\
## Licence

Not chosen by this export: whoever publishes these weights does, and adds it to the head of this card. What they were
trained on may set limits."""
_FEW = 5  # names of classes
_POOLED = {"cls": "the global token", "mean": "the mean of the patches' tokens"}


def card_of(target: Target, origin: Origin, comparisons: Sequence[Comparison], sha256: str, folder: str) -> str:
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
        f"---\n{head}{_LICENCE}\n---",
        f"# {_line(origin.name)}",
        origin.title and _line(origin.title),
        f"## Load it\n\n```python\n{target.usage(folder)}\n```",
        "\n".join(f"- {note}" for note in [*_inputs(backbone), *_classes(target.model), *target.notes]),
        _trained(origin),
        _numbers(origin),
        _model(target.model),
        _checked(target, comparisons, sha256),
        _LICENCE_TEXT,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _inputs(backbone: Backbone) -> list[str]:
    spec = backbone.spec
    notes = []
    if "rgb" in spec.channels:
        notes.append(
            f"Photos: {spec.channels['rgb']} channels, values in [0, 1], less the mean {_numbers_of(spec.mean)} and "
            f"divided by the standard deviation {_numbers_of(spec.std)}, channel by channel."
        )
    height, width = spec.image_size
    return [
        *notes,
        f"It is for images of {height}×{width} (height × width), patches of {backbone.patch}.",
        f"A vector for an image is {_POOLED[spec.pool]}{', normed behind that' if spec.has_fc_norm else ''}.",
    ]


def _classes(model: Model) -> list[str]:
    if not isinstance(model, Classifier):
        return []
    names = [_line(label.name) for label in model.spec.labels if label]
    few = ", ".join(f"“{name}”" for name in names[:_FEW]) + (", …" if len(names) > _FEW else "")
    unnamed = model.num_labels - len(names)
    told = [*([few] if names else []), *([f"{unnamed:,} without a name"] if unnamed else [])]
    return [
        f"It tells {model.num_labels:,} classes apart: {'; '.join(told)}.",
        f"It was tried on photos' central {100 * model.spec.crop:.4g} %, brought to that size bicubically.",
    ]


def _trained(origin: Origin) -> str:
    rows = _table(("What", "Known"), origin.facts.items())
    unknown = f"\n\nNot known here: {', '.join(origin.unknown)}." if origin.unknown else ""
    deviations = "".join(f"\n- {_line(each)}" for each in origin.deviations)
    departs = f"\n\nWhere its recipe departs from its source:\n{deviations}" if deviations else ""
    return f"## How it was trained\n\n{rows}{unknown}{departs}"


def _numbers(origin: Origin) -> str:
    parts = ["## Numbers"]
    if origin.losses:
        what, of = (
            ("score", "Scores of fine-tuning on photos")
            if origin.is_tuned
            else ("loss", "Losses of pre-training on scenes")
        )
        rows = _table((f"Held-out {what}", "Value"), [(name, f"{value:.4g}") for name, value in origin.losses.items()])
        parts.append(f"{of} that it did not learn from, at step {origin.losses_at:,}:\n\n{rows}")
        if origin.is_average:
            parts.append("They are of the weights as they were trained, not of their average, which this is.")
    else:
        parts.append("Losses on scenes that were held out: none were found.")
    if origin.evaluations:
        header = ("Evaluation", "Of", "Metric", "Value (95 % interval)", "Count")
        rows = _table(header, [(e.evaluation, e.source, e.metric, e.value, e.count) for e in origin.evaluations])
        protocols = dict.fromkeys((e.evaluation, e.protocol) for e in origin.evaluations if e.protocol)
        parts += [rows, "\n".join(f"- {_line(name)}: {_line(protocol)}" for name, protocol in protocols)]
    else:
        parts.append("Evaluations of its features: none were found beside it, so nothing is said of how good they are.")
    return "\n\n".join(part for part in parts if part)


def _model(model: Model) -> str:
    backbone = backbone_of(model)
    spec = backbone.spec
    head = f" A linear head of {model.num_labels:,} logits comes behind." if isinstance(model, Classifier) else ""
    count = sum(each.numel() for each in backbone.parameters())
    text = (
        f"## What it is\n\nA plain ViT, timm's `{spec.encoder.name}`: patches of {backbone.patch}, width "
        f"{backbone.dim}, {backbone.depth} blocks, {count:,} parameters with what embeds "
        f"{', '.join(backbone.granularities)}. Tokens that come before those of patches: {backbone.num_prefix}. "
        f"Positions are "
        f"{'a table' if spec.encoder.keep_positions else 'sines and cosines, computed for any size'}.{head}"
    )
    return "\n".join([text, "", *(f"- {_line(note)}" for note in model.report.notes)]).rstrip()


def _checked(target: Target, comparisons: Sequence[Comparison], sha256: str) -> str:
    rows = [
        (each.of, f"{each.difference:.1e}", f"{each.limit:.1e}" if each.limit is not None else f"none: {each.why}")
        for each in comparisons
    ]
    return (
        f"## Checked\n\nWritten by c2fmae {__version__}, read back by {target.tool} and compared with c2fmae on the "
        f"same generated photos.\n\n{_table(('Compared', 'Largest difference', 'Allowed'), rows)}\n\n"
        f"SHA-256 of `{target.weights}`: `{sha256}`"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_line(cell) for cell in line) + " |" for line in lines)


def _line(text: str) -> str:
    """Return text that stays in its line, and in its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _numbers_of(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
