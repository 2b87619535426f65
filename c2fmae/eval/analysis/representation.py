"""What a ViT's attention and features are like, block by block, without any task.

How far attention reaches is that of "Do Vision Transformers See Like Convolutional Neural Networks?" (2021), what it
depends on that of "What Do Self-Supervised Vision Transformers Learn?" (2023), the rank RankMe's (2023).
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from c2fmae.core.scene import SceneBatch
from c2fmae.eval.analysis.attention import iterate_attention
from c2fmae.eval.analysis.sampled_evaluation import SampledEvaluation, mean_metric
from c2fmae.eval.evaluation import EVALUATIONS, ModelUnderTest
from c2fmae.eval.metrics import Metric

PatchGrid = tuple[int, int]

_RELATIVE_ZERO = 1e-12  # of the largest eigenvalue: what is smaller is rounding


def patch_distances(grid: PatchGrid, device: torch.device | None = None) -> Float64[Tensor, "patch patch"]:
    """Return how far patches lie apart, in patches.

    >>> patch_distances((1, 3)).tolist()
    [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
    """
    rows, columns = (torch.arange(n, dtype=torch.float64, device=device) for n in grid)
    places = torch.cartesian_prod(rows, columns).view(-1, 2)
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def attention_distance(
    attention: Float[Tensor, "batch head patch patch"], grid: PatchGrid
) -> Float64[Tensor, " batch"]:
    """Return how far from a patch lies what it looks at, in patches: the mean over attention, patches and heads."""
    distance_matrix = patch_distances(grid, attention.device)
    return (attention.double() * distance_matrix).sum(dim=3).mean(dim=(1, 2))


def mutual_information(attention: Float[Tensor, "batch head query key"]) -> Float64[Tensor, " batch"]:
    """Return how much of where a query looks depends on the query, normalised, in the mean over heads.

    0 where all queries look at the same, 1 where each looks at a key of its own. With all queries equally likely, it
    is I(query; key) / √(H(query) H(key)).
    """
    attention = attention.double()
    of_keys = torch.special.entr(attention.mean(dim=2)).sum(dim=2)
    of_keys_by_query = torch.special.entr(attention).sum(dim=3).mean(dim=2)
    scale = (of_keys * math.log(attention.shape[2])).sqrt()
    shared: Tensor = (of_keys - of_keys_by_query).clamp(min=0) / scale
    return shared.where(scale > 0, 0).mean(dim=1)


def variance_spectrum(features: Float[Tensor, "*batch row dim"]) -> Float64[Tensor, "*batch direction"]:
    """Return the variance of features along their principal directions, as shares that add up to 1, largest first.

    All are 0 where features do not differ.
    """
    centred = features.double() - features.double().mean(dim=-2, keepdim=True)
    rows, dim = centred.shape[-2:]
    products = centred @ centred.mT if rows < dim else centred.mT @ centred
    variances: Tensor = torch.linalg.eigvalsh(products).flip(-1)
    largest, size = variances[..., :1], features.double().square().sum(dim=(-2, -1)).unsqueeze(-1)
    variances = variances.where((variances > _RELATIVE_ZERO * largest) & (largest > _RELATIVE_ZERO**2 * size), 0)
    total = variances.sum(dim=-1, keepdim=True)
    return (variances / total).where(total > 0, 0)


def effective_rank(variance_fractions: Float64[Tensor, "*batch direction"]) -> Float64[Tensor, "*batch"]:
    """Return in how many directions features differ: the exponential of the entropy of their singular values.

    >>> effective_rank(torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0], dtype=torch.float64)).item()
    4.0
    """
    singular = variance_fractions.sqrt()
    total = singular.sum(dim=-1, keepdim=True)
    entropy: Tensor = torch.special.entr(singular / total).sum(dim=-1)
    return entropy.exp().where(total.squeeze(-1) > 0, 0)


@EVALUATIONS.register("representation")
class RepresentationEvaluation(SampledEvaluation):
    """How far attention reaches, how much it depends on the query, and the rank of features, by layer."""

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Return seven numbers for each layer."""
        backbone = model.backbone
        depths = range(1, backbone.depth + 1)
        grid, patches = self._patch_grid(model), slice(backbone.num_prefix_tokens, None)

        def measure(scenes: SceneBatch) -> Tensor:
            photos, layers = backbone.standardise(scenes.maps["rgb"]), []
            attentions = iterate_attention(backbone, photos, depths, queries=patches, keys=patches)
            for depth, attention, tokens in zip(
                depths, attentions, backbone.get_intermediate_layers(photos, depths), strict=True
            ):
                variance_fractions = variance_spectrum(tokens[:, patches])
                numbers = [
                    attention_distance(attention, grid),
                    mutual_information(attention),
                    effective_rank(variance_fractions),
                    variance_fractions[:, 0],
                ]
                pooled = backbone.pool(tokens, depth=depth).double()
                layers.append(torch.cat([torch.stack(numbers, dim=1), pooled], dim=1))
            return torch.stack(layers, dim=1)

        measured = self.measure_images(model, measure)
        for depth, values in zip(depths, measured.unbind(dim=1), strict=True):
            distance, information, rank, top = values[:, :4].unbind(dim=1)
            variance_fractions, tags = variance_spectrum(values[:, 4:]), {"layer": depth}
            yield mean_metric("attention_distance", distance, **tags)
            yield mean_metric("attention_distance_pixels", distance * backbone.patch, **tags)
            yield mean_metric("attention_mutual_information", 100 * information, **tags)
            yield mean_metric("patch_rank", rank, **tags)
            yield mean_metric("patch_top_variance", 100 * top, **tags)
            yield Metric("image_rank", effective_rank(variance_fractions).item(), len(values), tags=tags)
            yield Metric("image_top_variance", 100 * variance_fractions[0].item(), len(values), tags=tags)

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Say what the seven numbers are."""
        height, width = self.resolve_image_size(model)
        uniform_distance = patch_distances(self._patch_grid(model)).mean().item()
        max_rank = min(self.count_images(model) - 1, model.backbone.dim)
        return (
            f"Photos of {height}×{width}. Attention is that of patches to patches, without prefix tokens, adding up to "
            "1. distance: from a patch's middle to that of what it looks at, in the mean over attention, patches and "
            f"heads; looking everywhere alike it would be {uniform_distance:.2f} patches. mutual information: of "
            "query and key, "
            "all queries equally likely, over the geometric mean of their entropies, in the mean over heads; 0 where "
            "all queries look at the same, 100 where each looks at a patch of its own. rank: the exponential of the "
            "entropy of the singular values of features, which are centred first (RankMe does not); top share: the "
            "percentage of variance along the first principal direction. Of patches: within each photo, in the mean "
            f"over photos. Of photos: of all pooled features ({model.backbone.spec.pool}), so that the rank is "
            f"{max_rank} at most. The last layer's features are normed. Intervals: normal, over images."
        )

    def _patch_grid(self, model: ModelUnderTest) -> PatchGrid:
        height, width = self.resolve_image_size(model)
        return height // model.backbone.patch, width // model.backbone.patch
