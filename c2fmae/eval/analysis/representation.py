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
from c2fmae.eval.analysis.config import RepresentationEvaluation
from c2fmae.eval.analysis.sampled import mean_metric, measure_images
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.metrics import Metric

_RELATIVE_ZERO = 1e-12  # of the largest eigenvalue: what is smaller is rounding


def patch_distances(grid: tuple[int, int], device: torch.device | None = None) -> Float64[Tensor, "patch patch"]:
    """Return how far patches lie apart, in patches.

    >>> patch_distances((1, 3)).tolist()
    [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
    """
    rows, columns = (torch.arange(n, dtype=torch.float64, device=device) for n in grid)
    places = torch.cartesian_prod(rows, columns).view(-1, 2)
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def attention_distance(
    attention: Float[Tensor, "batch head patch patch"], grid: tuple[int, int]
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


def measure_representation(config: RepresentationEvaluation, model: ModelUnderTest) -> Iterator[Metric]:
    """Yield seven metrics of each layer."""
    backbone = model.backbone
    depths, patches = range(1, backbone.depth + 1), slice(backbone.num_prefix_tokens, None)
    height, width = config.resolve_image_size(model)
    grid = height // backbone.patch, width // backbone.patch

    def measure(scenes: SceneBatch) -> Tensor:
        images, layers = backbone.standardise(scenes.maps["rgb"]), []
        attentions = iterate_attention(backbone, images, depths, queries=patches, keys=patches)
        tokens_by_layer = backbone.get_intermediate_layers(images, depths)
        for depth, attention, tokens in zip(depths, attentions, tokens_by_layer, strict=True):
            variance_fractions = variance_spectrum(tokens[:, patches])
            values = [
                attention_distance(attention, grid),
                mutual_information(attention),
                effective_rank(variance_fractions),
                variance_fractions[:, 0],
            ]
            pooled = backbone.pool(tokens, depth=depth).double()
            layers.append(torch.cat([torch.stack(values, dim=1), pooled], dim=1))
        return torch.stack(layers, dim=1)

    measured = measure_images(config, model, measure)
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
