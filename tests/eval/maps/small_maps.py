"""Small maps for tests of their scores: random ones, and one with known objects."""

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis.extra.numpy import arrays
from torch import Tensor


def draw_id_maps(num: int, ids: tuple[int, ...] = (0, 1, 2, 7, 255)) -> st.SearchStrategy[list[Tensor]]:
    """Return a strategy of maps of one size, of few blocks and single pixels."""
    return st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)).flatmap(
        lambda size: st.lists(
            arrays(np.int64, size[:2], elements=st.sampled_from(ids)).map(
                lambda values: torch.from_numpy(np.kron(values, np.ones((size[2], 1), np.int64)))
            ),
            min_size=num,
            max_size=num,
        )
    )


def make_objects() -> Tensor:
    """Return an instance map with three objects, of which two touch, and an unlabelled band around the third."""
    ids = torch.zeros(30, 40, dtype=torch.int64)
    ids[4:14, 4:14], ids[4:14, 14:22] = 1, 2
    ids[16:28, 20:36] = 255
    ids[18:26, 22:34] = 3
    return ids
