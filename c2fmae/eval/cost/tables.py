"""Text tables of costs."""

from collections.abc import Mapping, Sequence
from statistics import median

from c2fmae.config.masked_method import MaskedConfig
from c2fmae.core.text import format_count
from c2fmae.eval.cost.epoch_cost import EpochCost
from c2fmae.eval.metrics import Metric, TagValue, find_metric
from c2fmae.eval.results import EvaluationResult
from c2fmae.methods import METHODS

PAPER_EPOCH_COST = {"c2fmae": 1.3, "multimae": 1.3, "mae": 1.0}
"""Cost of an epoch with a ViT-B relative to MAE, from Table I of the paper."""

_COLUMNS: dict[tuple[str, TagValue | None], tuple[str, float, str]] = {
    ("parameters", None): ("parameters, M", 1e6, ".2f"),
    ("parameters", "embeddings"): ("embeddings", 1e6, ".2f"),
    ("parameters", "encoder"): ("encoder", 1e6, ".2f"),
    ("flops", None): ("GFLOP", 1e9, ".2f"),
    ("activation_bytes", None): ("activations, MB", 1e6, ".1f"),
    ("forward_bytes", None): ("forward, MB", 1e6, ".1f"),
    ("images_per_second", None): ("images/s", 1, ".1f"),
}
"""Title, unit and number format of the column of each metric key and part."""


def format_costs(results: Sequence[EvaluationResult]) -> list[str]:
    """Return a table of costs and, if there are pre-training methods, a table of the costs of an epoch."""
    lines = format_backbone_costs({result.source: result.metrics for result in results}).splitlines()
    epochs = {result.source: result.details for result in results if result.details is not None}
    if epochs:
        lines += ["", "an epoch of pre-training, relative to MAE with the same encoder and images:"]
        lines += format_epoch_costs(epochs).splitlines()
    return lines


def format_backbone_costs(costs: Mapping[str, Sequence[Metric]]) -> str:
    """Return a table with a row for each source; each value is followed by its ratio to the first source's."""
    columns = [metric for metric in next(iter(costs.values())) if metric.key != "flops" or "part" not in metric.tags]
    heads, rows = ["source"], [[name] for name in costs]
    for column in columns:
        title, unit, digits = _COLUMNS[column.key, column.tags.get("part")]
        heads.append(" ".join([title, *(str(value) for tag, value in column.tags.items() if tag != "part")]))
        for row, metrics in zip(rows, costs.values(), strict=True):
            metric = find_metric(metrics, column.key, **column.tags)
            assert metric is not None  # all sources have the same metrics
            cell = f"{metric.value / unit:{digits}}"
            if metric.interval is not None:
                cell += f" [{', '.join(f'{bound / unit:{digits}}' for bound in metric.interval)}]"
            if len(costs) > 1 and "part" not in column.tags:
                cell += f" ×{metric.value / column.value:.2f}"
            row.append(cell)
    return _align_columns([heads, *rows])


def format_epoch_costs(costs: Mapping[str, EpochCost]) -> str:
    """Return a table with a row for each method, with the ratio that the paper reports, and notes below."""
    heads = [
        *(
            "",
            "GFLOP/step",
            "MAE GFLOP/step",
            "FLOP ratio",
            "ms/step",
            "MAE ms/step",
            "time ratio",
            "fastest-step ratio",
        ),
        "paper",
    ]
    rows, notes = [], []
    for name, epoch_cost in costs.items():
        step, mae_step = (
            f"{median(seconds) * 1e3:.0f}" for seconds in (epoch_cost.step_seconds, epoch_cost.mae_step_seconds)
        )
        flops, mae_flops = (f"{cost.step_flops / 1e9:.1f}" for cost in (epoch_cost.cost, epoch_cost.mae_cost))
        ratios = [f"{ratio:.2f}" for ratio in (epoch_cost.time_ratio, epoch_cost.fastest_step_ratio)]
        paper_ratio = PAPER_EPOCH_COST.get(epoch_cost.method.name) if _is_paper_mae(epoch_cost.mae) else None
        row = [name, flops, mae_flops, f"{epoch_cost.flops_ratio:.2f}", step, mae_step, *ratios]
        rows.append([*row, f"{paper_ratio:.1f}" if paper_ratio else ""])
        decoder, (height, width) = epoch_cost.mae.decoder.options, epoch_cost.mae.image_size
        notes.append(
            f"{name}: compared with MAE of {epoch_cost.mae.encoder.name}, images of {height}×{width}, and a decoder of "
            f"{format_count(decoder.depth, 'block')} of width {decoder.dim}"
        )
        method = epoch_cost.method
        if isinstance(method, MaskedConfig) and (share := method.decoder.share) < 1:
            notes.append(f"{name}: a step decodes {share:.3g} of the patches of each granularity (decoder.share)")
    return "\n".join(
        [
            _align_columns([heads, *rows]),
            *notes,
            "GFLOP/step: for one image with all its views, the teacher and the backward pass, which counts as two "
            "forward passes, a multiply-add as two; time ratio: median over rounds in which the method and MAE are "
            "timed in turn",
            f"timed on {next(iter(costs.values())).machine}, eager (without torch.compile) and without data loading; "
            "the paper's ratios are of training times of a ViT-B on A100 GPUs",
        ]
    )


def _is_paper_mae(mae: MaskedConfig) -> bool:
    default = METHODS.get("mae")()
    return (mae.encoder.name, mae.encoder.vit_kwargs(), mae.image_size) == (
        default.encoder.name,
        {},
        default.image_size,
    )


def _align_columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{'>' if index else '<'}{widths[index]}}" for index, cell in enumerate(row)).rstrip()
        for row in rows
    )
