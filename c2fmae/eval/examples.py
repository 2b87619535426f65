"""Examples of a test: the images with the highest, the median and the lowest score."""

from jaxtyping import Float64
from torch import Tensor

_NUM_EXAMPLES = 4


def choose_examples(scores: Float64[Tensor, " image"], count: int = _NUM_EXAMPLES) -> dict[str, list[int]]:
    """Return the indices of the best, the median and the worst images, at most `count` of each and none twice.

    Images without a score (NaN) are not chosen. Of equal ones, the first is better.

    >>> import torch
    >>> choose_examples(torch.tensor([0.5, 0.9, torch.nan, 0.1, 0.7]).double())
    {'best': [1], 'median': [4], 'worst': [3]}
    """
    values = scores.tolist()
    order = sorted(
        (index for index, value in enumerate(values) if value == value), key=lambda index: (-values[index], index)
    )
    if len(order) < 3:
        return {"best": order[:1], "median": [], "worst": order[1:]}
    each = min(count, len(order) // 3)
    first = (len(order) - each) // 2
    return {"best": order[:each], "median": order[first : first + each], "worst": order[-each:]}
