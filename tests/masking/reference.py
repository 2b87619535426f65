"""Reference masking primitives: loops over Python numbers and exact fractions, which the fast ones must equal."""

from collections.abc import Sequence
from fractions import Fraction


def apportion(weights: Sequence[Fraction | int], total: int, capacity: Sequence[int]) -> list[int]:
    quota = quotas(weights, total, capacity)
    share = [int(q) for q in quota]
    by_remainder = sorted(range(len(quota)), key=lambda k: (share[k] - quota[k], k))
    for k in by_remainder[: min(total, sum(capacity)) - sum(share)]:
        share[k] += 1
    return share


def quotas(weights: Sequence[Fraction | int], total: int, capacity: Sequence[int]) -> list[Fraction]:
    bins = range(len(weights))
    total = min(total, sum(capacity))
    weighted = {k for k in bins if weights[k] > 0}
    over = total - sum(capacity[k] for k in weighted)
    if over > 0:
        unweighted = sum(capacity[k] for k in bins if k not in weighted)
        return [Fraction(capacity[k]) * (1 if k in weighted else Fraction(over, unweighted)) for k in bins]
    full: set[int] = set()
    while True:  # fill the bins that would overflow, until none does
        rest = Fraction(total - sum(capacity[k] for k in full))
        weight = sum((Fraction(weights[k]) for k in weighted - full), Fraction(0))
        level = rest / weight if weight else Fraction(0)
        overflowing = {k for k in weighted - full if level * weights[k] >= capacity[k]}
        if not overflowing:
            return [Fraction(capacity[k]) if k in full else level * weights[k] for k in bins]
        full |= overflowing


def hide_highest(candidates: Sequence[int], noise: Sequence[float], count: int) -> set[int]:
    return set(sorted(candidates, key=lambda patch: (-noise[patch], patch))[:count])


def semantic_mask(
    regions: Sequence[int],
    noise: Sequence[float],
    num_masked: int,
    weights: Sequence[Fraction | int] | None,
    ignore: int,
) -> set[int]:
    ids = sorted(set(regions))
    members = [[patch for patch, region in enumerate(regions) if region == c] for c in ids]
    region_weights = [1 if weights is None or c == ignore else weights[c] for c in ids]
    shares = apportion(
        [w * len(m) for w, m in zip(region_weights, members, strict=True)], num_masked, [len(m) for m in members]
    )
    return set().union(*(hide_highest(m, noise, share) for m, share in zip(members, shares, strict=True)))


def instance_mask(
    instances: Sequence[int], noise: Sequence[float], num_masked: int, object_share: Fraction, ignore: int
) -> set[int]:
    objects = [patch for patch, instance in enumerate(instances) if instance not in (0, ignore)]
    background = [patch for patch, instance in enumerate(instances) if instance in (0, ignore)]
    on_objects, on_background = apportion([object_share, 1 - object_share], num_masked, [len(objects), len(background)])
    return hide_highest(objects, noise, on_objects) | hide_highest(background, noise, on_background)


def top_k_mask(scores: Sequence[float], noise: Sequence[float], num_masked: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda patch: (-scores[patch], -noise[patch], patch))[:num_masked])


def patch_region(pixels: Sequence[int], ignore: int) -> int:
    counts = {pixel: pixels.count(pixel) for pixel in pixels if pixel != ignore}
    return min(counts, key=lambda pixel: (-counts[pixel], pixel)) if counts else ignore
