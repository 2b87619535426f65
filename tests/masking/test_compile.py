"""Every primitive compiles into one graph with bitwise the same result.

Most are traced and run without code generation, which is enough to find graph breaks and host reads; one chain of
primitives is compiled to native code. These tests are excluded from the run with shape checks, which read tensor types.
"""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from c2fmae.masking import (
    MaskNoise,
    PatchMaps,
    apportion,
    blend_scores,
    compute_quotas,
    instance_mask,
    patch_regions,
    quota_mask,
    random_mask,
    sample_mask,
    select_instances,
    semantic_mask,
    top_k_mask,
)
from c2fmae.masking.policies import POLICIES, ProgressivePolicy

pytestmark = pytest.mark.compile

G = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 5, (4, 35), generator=G)
NOISE = torch.rand(6, 4, 35, generator=G)
BUDGET = torch.tensor([0, 35, 17, 30])
MASKS = tuple(random_mask(noise, BUDGET) for noise in NOISE[:3])
LABELS = torch.randint(0, 9, (4, 32, 48), dtype=torch.uint8, generator=G)
WEIGHTS = torch.rand(4, 6, generator=G)
CAPACITY = torch.randint(0, 9, (4, 6), generator=G)
MAPS = PatchMaps(IDS, IDS)
MASK_NOISE = MaskNoise(NOISE[0], NOISE[1], NOISE[2], NOISE[3], NOISE[4, :, 0])

CASES: dict[str, tuple[Callable[..., Tensor], tuple[object, ...]]] = {
    "patch_regions, compared": (lambda labels: patch_regions(labels, 4), (LABELS,)),
    "patch_regions, counted": (lambda labels: patch_regions(labels, 16), (LABELS,)),
    "patch_regions, sorted": (lambda labels: patch_regions(labels, 16), (LABELS.long() * 1000,)),
    "apportion, real": (apportion, (WEIGHTS, BUDGET, CAPACITY)),
    "apportion, integer": (apportion, ((WEIGHTS * 9).long(), BUDGET, CAPACITY)),
    "quotas": (compute_quotas, (WEIGHTS, BUDGET, CAPACITY)),
    "random_mask": (random_mask, (NOISE[0], BUDGET)),
    "random_mask, float64": (random_mask, (NOISE[0].double(), BUDGET)),
    "top_k_mask": (top_k_mask, ((NOISE[0] * 3).round() - 1, BUDGET, NOISE[1])),
    "semantic_mask": (semantic_mask, (IDS, NOISE[0], BUDGET)),
    "semantic_mask, weighted": (
        lambda ids, noise, budget, weights: semantic_mask(ids, noise, budget, weights=weights),
        (IDS, NOISE[0], BUDGET, torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0])),
    ),
    "instance_mask": (lambda *row: instance_mask(*row, object_share=0.75), (IDS, NOISE[0], BUDGET)),
    "instance_mask, per image": (
        lambda *row: instance_mask(*row[:3], object_share=row[3]),
        (IDS, NOISE[0], BUDGET, NOISE[4, :, 0]),
    ),
    "select_instances": (lambda ids: select_instances(ids, 2, grid=(5, 7)), (IDS,)),
    "blend_scores": (blend_scores, (*MASKS, 0.4, 0.3)),
    "sample_mask": (sample_mask, (*MASKS, 0.4, 0.3, NOISE[4, :, 0])),
    "quota_mask": (quota_mask, (*MASKS, 0.4, 0.3, NOISE[3])),
    **{
        f"progressive, {blend} at {progress}": (
            lambda *row, blend=blend, progress=progress: ProgressivePolicy(blend=blend).hide(
                PatchMaps(*row[:2]), row[2], MaskNoise(*row[3:]), progress=progress
            ),
            (IDS, IDS, BUDGET, *MASK_NOISE),
        )
        for blend in ("topk", "sample", "quota")
        for progress in (0.25, 0.4)
    },
    **{
        name: (
            lambda *row, name=name: POLICIES.get(name)().hide(
                PatchMaps(row[0], row[1], grid=(5, 7)), row[2], MaskNoise(*row[3:]), progress=0.5
            ),
            (IDS, IDS, BUDGET, *MASK_NOISE),
        )
        for name in POLICIES
    },
}


@pytest.mark.parametrize("name", list(CASES))
def test_the_compiled_function_is_one_graph_with_the_same_result(name: str) -> None:
    function, arguments = CASES[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), function(*arguments))


@pytest.mark.parametrize("name", ["blend_scores", "sample_mask", "quota_mask", "instance_mask"])
def test_new_coefficients_do_not_recompile(name: str) -> None:
    semantic, instance, random = MASKS

    def call(alpha: float) -> Tensor:
        match name:
            case "blend_scores":
                return blend_scores(semantic, instance, random, alpha, 1 - alpha)
            case "sample_mask":
                return sample_mask(semantic, instance, random, alpha, 1 - alpha, NOISE[4, :, 0])
            case "quota_mask":
                return quota_mask(semantic, instance, random, alpha, 1 - alpha, NOISE[3])
            case _:
                return instance_mask(IDS, NOISE[0], BUDGET, object_share=alpha)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for step in range(1, 20):  # more than the limit of recompilations
        assert torch.equal(compiled(step / 20), call(step / 20))


def test_new_batch_sizes_do_not_recompile() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(semantic_mask, fullgraph=True, backend="aot_eager")
    for batch in range(2, 20):
        row = (IDS[:1].expand(batch, -1), NOISE[0, :1].expand(batch, -1), BUDGET[2:3].expand(batch))
        assert torch.equal(compiled(*row), semantic_mask(*row))


@pytest.mark.parametrize(
    "mask",
    [
        lambda ids, noise, budget: random_mask(noise, budget),
        lambda ids, noise, budget: top_k_mask(noise, budget, noise),
        semantic_mask,
        lambda ids, noise, budget: semantic_mask(ids, noise, budget, weights=torch.arange(5.0)),
        lambda ids, noise, budget: instance_mask(ids, noise, budget, object_share=0.75),
    ],
    ids=["random", "topk", "semantic", "weighted", "instance"],
)
def test_budgets_out_of_range_are_clamped_in_compiled_code(mask: Callable[..., Tensor]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(mask, fullgraph=True, backend="aot_eager")
    assert compiled(IDS, NOISE[0], torch.tensor([-3, 99, 0, 35])).sum(dim=1).tolist() == [0, 35, 0, 35]


def blend_guided_masks(labels: Tensor, noise: Tensor, budget: Tensor) -> Tensor:
    semantic = semantic_mask(patch_regions(labels, 8), noise[0], budget)
    random = random_mask(noise[1], budget)
    return top_k_mask(blend_scores(semantic, semantic, random, 0.2, 0.3), budget, noise[2])


@pytest.mark.skipif(not shutil.which("g++"), reason="needs the package g++, which torch.compile needs")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch 2.11's own, on first use
def test_generated_code_gives_the_same_result_including_ties_and_signed_zeros() -> None:
    noise = (NOISE[:3, :, :24] * 4).round() / 4 - 0.5
    noise[:, ::2] *= noise[:, ::2].ne(0).float() * 2 - 1  # -0.0 in every other row
    arguments = (LABELS, noise, torch.tensor([0, 24, 11, 20]))
    torch._dynamo.reset()
    assert torch.equal(torch.compile(blend_guided_masks, fullgraph=True)(*arguments), blend_guided_masks(*arguments))
