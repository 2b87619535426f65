import numpy as np
import pytest
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

from c2fmae.core.rle import decode_mask, decode_runs, encode_mask, encode_runs, encode_window


def random_masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    masks = [np.zeros((7, 5), np.uint8), np.ones((7, 5), np.uint8), np.zeros((1, 1), np.uint8)]
    masks += [rng.integers(2, size=rng.integers(1, 40, 2)).astype(np.uint8) for _ in range(30)]
    sparse = np.zeros((900, 1100), np.uint8)  # runs of several digits, ascending and descending
    sparse[100:800, 3], sparse[2:4, 700:705], sparse[-1, -1] = 1, 1, 1
    return [*masks, sparse]


def test_bytes_equal_those_of_pycocotools() -> None:
    for mask in random_masks():
        expected = coco_mask.encode(np.asfortranarray(mask))["counts"]
        assert encode_mask(mask) == expected
        assert np.array_equal(decode_mask(expected, *mask.shape), mask)
        assert encode_runs(decode_runs(expected)) == expected


def test_the_window_of_a_mask_is_encoded_like_the_whole() -> None:
    rng = np.random.default_rng(1)
    for mask in random_masks():
        height, width = mask.shape[0] + 4, mask.shape[1] + 3
        for left, top in ((0, 0), (3, 4), (int(rng.integers(4)), int(rng.integers(5)))):
            whole = np.zeros((height, width), np.uint8)
            whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
            assert encode_window(mask, left, top, height, width) == encode_mask(whole)


def test_truncated_run_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="truncated or corrupted"):
        decode_runs(encode_runs(np.array([100, 2000, 50]))[:-1] + b"o")
