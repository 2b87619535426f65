"""Masks and names of parameters that were recorded: a change of either is a change of all runs."""

from hashlib import sha256

import pytest
import torch
from torch import Tensor

from c2fmae.core.distributed import World
from c2fmae.methods import METHODS, build_method
from c2fmae.methods.branches.method import BranchMethod
from tests.methods.tiny_branches import ENCODER, PLAN, TINY, draw_scenes
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes

pytestmark = pytest.mark.numeric

STEPS = ((0, 0.0), (1, 0.25), (3, 0.75))
MASKED = {
    "c2fmae": [
        [149258669915902, 262577103732479],
        [139637371301887, 270204982261740],
        [277068306695551, 211037434544127],
    ],
    "mae": [[57078, 63742], [30143, 41983], [65181, 32189]],
    "multimae": [
        [245143781228031, 271023157018543],
        [278999531519995, 280581622460863],
        [281191504661879, 175921823809535],
    ],
}
BRANCHES = {
    "cmae": [[52479, 52479, 52479], [13311, 13311, 65484], [65331, 13311, 65331]],
    "lut": [
        [43967, 62951, 56958, 55259, 32443, 59319],
        [32741, 48091, 61117, 63071, 54527, 57182],
        [57293, 36861, 28095, 59323, 63319, 64231],
    ],
    "conmim": [[52479, 52479, 52479], [13311, 13311, 65484], [65331, 13311, 65331]],
    "ibot": [[128, 34, 33, 582, 1904, 2201], [238, 15104, 28728, 2321, 1088, 0], [12080, 8292, 17748, 39152, 35200, 0]],
}
PARAMETERS = {
    "attmask": (39, "1466556063e1"),
    "c2fmae": (175, "3eeb1628df76"),
    "cmae": (75, "986af9693a9e"),
    "conmim": (41, "90c768f76f3d"),
    "dino": (37, "c210ae2a120f"),
    "ibot": (39, "1466556063e1"),
    "lut": (52, "2e100f7988ca"),
    "mae": (96, "42cc4003bfb2"),
    "moco-v1": (33, "0543499c0d8a"),
    "moco-v3": (40, "243605701178"),
    "mst": (46, "f10e4d8f3bf3"),
    "multimae": (217, "08eb5ae41be4"),
    "simclr": (33, "b9f354bad0eb"),
}


def to_number(is_masked: Tensor) -> int:
    """Return the mask of an image as a number with a bit for each patch, of which the first is the highest."""
    return int("".join(str(int(bit)) for bit in is_masked.flatten()), 2)


def list_parameters(name: str) -> str:
    with torch.device("meta"):
        if name in TINY:
            method = build_method(METHODS.get(name)().override([*ENCODER, *TINY[name]]))
        else:
            method = build_tiny_method(name)
    return "".join(f"{key} {tuple(value.shape)}\n" for key, value in method.model.state_dict().items())


@pytest.mark.parametrize("name", MASKED)
def test_masks_of_masked_methods_are_those_of_earlier_versions(name: str) -> None:
    task = build_tiny_method(name, size=(64, 64)).build_task(PLAN, seed=3)
    found = []
    for step, progress in STEPS:
        scenes = draw_noise_scenes(2, (64, 64), seed=step)
        (part,) = task.split(scenes, num_micro_batches=1, step=step, progress=progress, world=World())
        found.append([to_number(is_masked) for is_masked in part.masks.is_masked])
    assert found == MASKED[name]


@pytest.mark.parametrize("name", BRANCHES)
def test_masks_of_two_branch_methods_are_those_of_earlier_versions(name: str) -> None:
    method = build_method(METHODS.get(name)().override([*ENCODER, *TINY[name]]))
    assert isinstance(method, BranchMethod)
    preparer = method.create_preparer(seed=3)
    found: list[list[int]] = []
    for step, progress in STEPS:
        (part,) = preparer.prepare(
            draw_scenes(method, step), num_micro_batches=1, step=step, progress=progress, world=World()
        )
        found.append([to_number(is_masked) for mask in part.masks.values() for is_masked in mask[:3]])
    assert found == BRANCHES[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_names_and_shapes_of_parameters_are_those_of_earlier_versions(name: str) -> None:
    parameters = list_parameters(name)
    assert (parameters.count("\n"), sha256(parameters.encode()).hexdigest()[:12]) == PARAMETERS[name], parameters
