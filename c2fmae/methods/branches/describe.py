"""The description of a two-branch method: views, student, teacher, losses and costs."""

from typing import TYPE_CHECKING

from c2fmae.config.branches import BranchConfig, Number
from c2fmae.core.operation_count import ForwardCost
from c2fmae.core.ramps import Ramp

if TYPE_CHECKING:
    from c2fmae.methods.branches.method import BranchMethod


def describe_branches(method: "BranchMethod") -> str:
    """Return a line for each view, branch, loss and part. The method is on the meta device."""
    config, lines = method.config, _describe_views(method.config)
    for name, text in method.summarise().items():
        lines[f"loss {name}" if name in method.loss_weights else name] = text
    if method.teacher is None:
        lines["teacher"] = "none"
    else:
        lines["teacher"] += f"; momentum {_describe_number(config.momentum)}"
    lines["encoder"] = f"{config.encoder.name}{', norm' if config.encoder.has_norm else ''}"
    lines |= _describe_costs(method.compute_cost(), has_teacher=method.teacher is not None)
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {line}" for name, line in lines.items())


def _describe_views(config: BranchConfig) -> dict[str, str]:
    def describe(count: int, size: tuple[int, int], crop: str, has_colours: bool) -> str:
        return f"{count} × {size[0]}×{size[1]} pixels, {crop}, {'changed' if has_colours else 'original'} colours"

    lines = {"view main": describe(1, config.image_size, "random crop", config.colour is not None)}
    for name, view in config.views.items():
        area = "" if view.scale is None else f" of {view.scale[0]:g} to {view.scale[1]:g} of the image"
        crop = {
            "own": f"another random crop{area}",
            "main": "crop of main",
            "shifted": f"crop of main, shifted by up to {view.shift} pixels",
        }[view.crop]
        lines[f"view {name}"] = describe(view.count, view.size or config.image_size, crop, view.colour is not None)
    return lines


def _describe_number(number: Number) -> str:
    return f"{number.start:g} to {number.end:g}" if isinstance(number, Ramp) else f"{number:g}"


def _describe_costs(cost: ForwardCost, *, has_teacher: bool) -> dict[str, str]:
    lines = {
        f"cost of {name}": f"{part.parameters / 1e6:.2f} M parameters, {part.flops / 1e9:.2f} GFLOP"
        for name, part in cost.part_costs.items()
    }
    if has_teacher:
        lines["cost of teacher"] = f"{cost.teacher_flops / 1e9:.2f} GFLOP"
    lines["cost of step"] = (
        f"{cost.step_flops / 1e9:.2f} GFLOP for one image; the backward pass is twice the forward one"
    )
    return lines
