"""Costs as tables of text."""

from collections.abc import Mapping, Sequence
from statistics import median

from c2fmae.config.method import MethodConfig
from c2fmae.eval.cost.epoch_cost import EpochCost
from c2fmae.eval.evaluation import Metric
from c2fmae.methods import METHODS

PAPER_EPOCH_COST = {"c2fmae": 1.3, "multimae": 1.3, "mae": 1.0}
"""What Table I of the paper says an epoch costs with a ViT-B, MAE's being 1."""


def format_backbone_costs(costs: Mapping[str, Sequence[Metric]]) -> str:
    """Return a row for every source, and behind each number how many times the first source's it is."""
    metrics_by_source = {name: {metric.name: metric for metric in metrics} for name, metrics in costs.items()}
    columns: dict[str, tuple[str, float, str]] = {
        "parameters": ("parameters, M", 1e6, ".2f"),
        "parameters/embeddings": ("embeddings", 1e6, ".2f"),
        "parameters/encoder": ("encoder", 1e6, ".2f"),
        "flops": ("GFLOP", 1e9, ".2f"),
        "activation_bytes": ("activations, MB", 1e6, ".1f"),
        "forward_bytes": ("forward, MB", 1e6, ".1f"),
        "images_per_second": ("images/s", 1, ".1f"),
    }
    shown = [
        name
        for name in next(iter(metrics_by_source.values()))
        if name.partition("/")[0] in columns and "flops/" not in name
    ]
    heads, rows = ["source"], [[name] for name in metrics_by_source]
    for name in shown:
        kind, _, precision = name.partition("/")
        title, unit, digits = columns.get(name) or columns[kind]
        heads.append(title if name in columns else f"{title} {precision}")
        first = next(iter(metrics_by_source.values()))[name].value
        for row, metrics in zip(rows, metrics_by_source.values(), strict=True):
            metric = metrics[name]
            cell = f"{metric.value / unit:{digits}}"
            if metric.interval is not None:
                cell += f" [{', '.join(f'{bound / unit:{digits}}' for bound in metric.interval)}]"
            if len(metrics_by_source) > 1 and name not in ("parameters/embeddings", "parameters/encoder"):
                cell += f" ×{metric.value / first:.2f}"
            row.append(cell)
    return _align_columns([heads, *rows])


def format_epoch_costs(costs: Mapping[str, EpochCost], machine: str) -> str:
    """Return a row for every method, and what the paper says beside it; `machine` is where steps were timed."""
    heads = ["", "GFLOP", "MAE's", "× by FLOP", "ms a step", "MAE's", "× by time", "× by minima", "paper"]
    rows, notes = [], []
    for name, epoch_cost in costs.items():
        step, mae_step = (
            f"{median(seconds) * 1e3:.0f}" for seconds in (epoch_cost.step_seconds, epoch_cost.mae_step_seconds)
        )
        flops, mae_flops = (f"{cost.flops / 1e9:.2f}" for cost in (epoch_cost.cost, epoch_cost.mae_cost))
        ratios = [f"{ratio:.2f}" for ratio in (epoch_cost.time_ratio, epoch_cost.fastest_step_ratio)]
        paper_ratio = PAPER_EPOCH_COST.get(epoch_cost.method.name) if _is_paper_mae(epoch_cost.mae) else None
        row = [name, flops, mae_flops, f"{epoch_cost.flops_ratio:.2f}", step, mae_step, *ratios]
        rows.append([*row, f"{paper_ratio:.1f}" if paper_ratio else ""])
        decoder, (height, width) = epoch_cost.mae.decoder.options, epoch_cost.mae.image_size
        notes.append(
            f"{name}: its MAE has {epoch_cost.mae.encoder.name} too, photos of {height}×{width}, and a decoder of "
            f"{decoder.depth} blocks of width {decoder.dim}"
        )
    return "\n".join(
        [
            _align_columns([heads, *rows]),
            *notes,
            "by FLOP: of one image's forward pass, a multiplication and the addition behind it being two; "
            "by time: median over rounds of steps in turn",
            f"timed on {machine}, without reading data; the paper's are a ViT-B's training times on A100 GPUs",
        ]
    )


def _is_paper_mae(mae: MethodConfig) -> bool:
    papers = METHODS.get("mae")()
    return (mae.encoder.name, mae.encoder.vit_kwargs(), mae.image_size) == (papers.encoder.name, {}, papers.image_size)


def _align_columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{'>' if index else '<'}{widths[index]}}" for index, cell in enumerate(row)).rstrip()
        for row in rows
    )
