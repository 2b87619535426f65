"""Statistics of a ViT's attention and features, block by block, without a task.

Attention distance is that of Raghu et al., "Do Vision Transformers See Like Convolutional Neural Networks?" (2021),
mutual information that of Park et al. (ICLR 2023), and effective rank that of RankMe (Garrido et al., 2023).
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from c2fmae.core.scene import SceneBatch
from c2fmae.eval.analysis.attention import iterate_attention
from c2fmae.eval.analysis.config import RepresentationEvaluation
from c2fmae.eval.analysis.sampled import make_mean_metric, measure_images
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.metrics import Metric

_RELATIVE_ZERO = 1e-12  # relative to the largest eigenvalue; smaller ones are rounding errors


def compute_patch_distances(
    grid: tuple[int, int], device: torch.device | None = None
) -> Float64[Tensor, "patch patch"]:
    """Return the distances between the centres of all patches, in patches.

    >>> compute_patch_distances((1, 3)).tolist()
    [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
    """
    rows, columns = (torch.arange(n, dtype=torch.float64, device=device) for n in grid)
    centres = torch.cartesian_prod(rows, columns).view(-1, 2)
    return torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")


def compute_attention_distance(
    attention: Float[Tensor, "batch head patch patch"], grid: tuple[int, int]
) -> Float64[Tensor, " batch"]:
    """Return the mean distance, in patches, from a patch to the patches that it attends to, averaged over heads."""
    distance_matrix = compute_patch_distances(grid, attention.device)
    return (attention.double() * distance_matrix).sum(dim=3).mean(dim=(1, 2))


def compute_mutual_information(attention: Float[Tensor, "batch head query key"]) -> Float64[Tensor, " batch"]:
    """Return the normalised mutual information of query and key, averaged over heads.

    With all queries equally likely, it is I(query; key) / √(H(query) H(key)): 0 if all queries attend to the same keys,
    1 if each attends to a key of its own.
    """
    attention = attention.double()
    key_entropy = torch.special.entr(attention.mean(dim=2)).sum(dim=2)
    conditional_entropy = torch.special.entr(attention).sum(dim=3).mean(dim=2)
    scale = (key_entropy * math.log(attention.shape[2])).sqrt()
    information: Tensor = (key_entropy - conditional_entropy).clamp(min=0) / scale
    return information.where(scale > 0, 0).mean(dim=1)


def compute_variance_spectrum(features: Float[Tensor, "*batch row dim"]) -> Float64[Tensor, "*batch direction"]:
    """Return the fractions of the variance along the principal directions, in descending order.

    They add up to 1; if all features are equal, they are 0.
    """
    centred = features.double() - features.double().mean(dim=-2, keepdim=True)
    rows, dim = centred.shape[-2:]
    products = centred @ centred.mT if rows < dim else centred.mT @ centred
    variances: Tensor = torch.linalg.eigvalsh(products).flip(-1)
    largest, size = variances[..., :1], features.double().square().sum(dim=(-2, -1)).unsqueeze(-1)
    variances = variances.where((variances > _RELATIVE_ZERO * largest) & (largest > _RELATIVE_ZERO**2 * size), 0)
    total = variances.sum(dim=-1, keepdim=True)
    return (variances / total).where(total > 0, 0)


def compute_effective_rank(variance_fractions: Float64[Tensor, "*batch direction"]) -> Float64[Tensor, "*batch"]:
    """Return the effective number of directions of features: the exponential of the entropy of their singular values.

    >>> compute_effective_rank(torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0], dtype=torch.float64)).item()
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
            variance_fractions = compute_variance_spectrum(tokens[:, patches])
            values = [
                compute_attention_distance(attention, grid),
                compute_mutual_information(attention),
                compute_effective_rank(variance_fractions),
                variance_fractions[:, 0],
            ]
            pooled = backbone.pool(tokens, depth=depth).double()
            layers.append(torch.cat([torch.stack(values, dim=1), pooled], dim=1))
        return torch.stack(layers, dim=1)

    measured = measure_images(config, model, measure)
    for depth, values in zip(depths, measured.unbind(dim=1), strict=True):
        distance, information, rank, top = values[:, :4].unbind(dim=1)
        variance_fractions, tags = compute_variance_spectrum(values[:, 4:]), {"layer": depth}
        yield make_mean_metric("attention_distance", distance, **tags)
        yield make_mean_metric("attention_distance_pixels", distance * backbone.patch, **tags)
        yield make_mean_metric("attention_mutual_information", 100 * information, **tags)
        yield make_mean_metric("patch_rank", rank, **tags)
        yield make_mean_metric("patch_top_variance", 100 * top, **tags)
        yield Metric("image_rank", compute_effective_rank(variance_fractions).item(), len(values), tags=tags)
        yield Metric("image_top_variance", 100 * variance_fractions[0].item(), len(values), tags=tags)
