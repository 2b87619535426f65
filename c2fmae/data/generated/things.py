"""Classes of things: their parts, and the stuff on which they are never placed."""

from typing import Literal

from c2fmae.data.generated.shapes import ShapeFn, box, clip_above, disc, mirror, oval, polygon, ring, union

ColourRole = Literal["body", "second", "dark", "light"]
"""The role of a part's colour among the colours of its thing."""
ThingParts = tuple[tuple[ShapeFn, ColourRole], ...]

MAX_EXTENT = 1.35
"""Maximum distance of a part from the centre, in radii, for any class and width."""

THING_PARTS: dict[str, ThingParts] = {
    "house": (
        (box(0, 0.4, 0.72, 0.52), "body"),
        (box(0.48, -0.62, 0.13, 0.3), "dark"),
        (polygon((-1, -0.1), (0, -0.95), (1, -0.1)), "second"),
        (box(-0.3, 0.58, 0.17, 0.34), "dark"),
        (box(0.3, 0.36, 0.2, 0.2), "light"),
    ),
    "fir": (
        (
            union(
                polygon((-0.42, -0.35), (0, -1.05), (0.42, -0.35)),
                polygon((-0.62, 0.18), (0, -0.7), (0.62, 0.18)),
                polygon((-0.8, 0.72), (0, -0.3), (0.8, 0.72)),
            ),
            "body",
        ),
        (box(0, 0.86, 0.13, 0.16), "dark"),
    ),
    "car": (
        (
            union(box(0, 0.24, 1.0, 0.26), polygon((-0.72, 0.05), (-0.45, -0.45), (0.3, -0.45), (0.62, 0.05))),
            "body",
        ),
        (polygon((-0.5, -0.04), (-0.35, -0.33), (0.22, -0.33), (0.42, -0.04)), "light"),
        (union(disc(-0.55, 0.5, 0.26), disc(0.55, 0.5, 0.26)), "dark"),
        (union(disc(-0.55, 0.5, 0.11), disc(0.55, 0.5, 0.11)), "second"),
    ),
    "boat": (
        (polygon((0.02, -1.0), (0.85, 0.3), (0.02, 0.3)), "body"),
        (polygon((-0.02, -0.8), (-0.02, 0.3), (-0.66, 0.3)), "light"),
        (box(0, -0.25, 0.05, 0.75), "dark"),
        (polygon((-0.95, 0.42), (0.95, 0.42), (0.6, 0.9), (-0.6, 0.9)), "second"),
    ),
    "fish": (
        (oval(-0.15, 0, 0.82, 0.5), "body"),
        (
            union(polygon((0.42, 0), (1.05, -0.5), (1.05, 0.5)), polygon((-0.2, -0.4), (0.3, -0.72), (0.25, -0.35))),
            "second",
        ),
        (disc(-0.58, -0.1, 0.15), "light"),
        (disc(-0.6, -0.1, 0.08), "dark"),
    ),
    "duck": (
        (
            union(
                oval(0.12, 0.38, 0.78, 0.48), disc(-0.42, -0.36, 0.38), polygon((0.5, 0.2), (1.05, -0.2), (0.9, 0.45))
            ),
            "body",
        ),
        (polygon((-1.05, -0.22), (-0.72, -0.46), (-0.72, -0.14)), "second"),
        (oval(0.3, 0.32, 0.4, 0.22), "second"),
        (disc(-0.52, -0.44, 0.08), "dark"),
    ),
    "mushroom": (
        (clip_above(oval(0, 0.08, 0.98, 0.95), 0.1), "body"),
        (polygon((-0.24, 0.1), (0.24, 0.1), (0.34, 0.9), (-0.34, 0.9)), "light"),
        (union(disc(-0.45, -0.2, 0.16), disc(0.1, -0.5, 0.18), disc(0.52, -0.1, 0.14)), "second"),
    ),
    "balloon": (
        (union(disc(0, -0.32, 0.7), polygon((-0.58, 0.06), (0.58, 0.06), (0.16, 0.6), (-0.16, 0.6))), "body"),
        (union(box(-0.13, 0.66, 0.025, 0.1), box(0.13, 0.66, 0.025, 0.1)), "dark"),
        (box(0, 0.86, 0.19, 0.14), "second"),
    ),
    "mug": (
        (union(box(-0.18, 0.12, 0.62, 0.74), ring(0.5, 0.1, 0.36, 0.11)), "body"),
        (box(-0.18, 0.12, 0.62, 0.14), "second"),
        (oval(-0.18, -0.62, 0.62, 0.17), "light"),
        (oval(-0.18, -0.6, 0.5, 0.11), "dark"),
    ),
    "flower": (
        (
            mirror(
                union(
                    disc(0, -0.86, 0.24),
                    disc(0.4, -0.62, 0.24),
                    disc(0.4, -0.18, 0.24),
                    disc(0, 0.04, 0.24),
                    disc(0, -0.4, 0.4),
                )
            ),
            "body",
        ),
        (
            union(clip_above(box(0, 0.6, 0.06, 0.4), 1), oval(0.26, 0.6, 0.26, 0.11), oval(-0.24, 0.74, 0.24, 0.1)),
            "dark",
        ),
        (disc(0, -0.4, 0.2), "second"),
    ),
    "butterfly": (
        (mirror(union(oval(0.55, -0.36, 0.46, 0.5), oval(0.46, 0.42, 0.36, 0.4))), "body"),
        (mirror(union(disc(0.6, -0.4, 0.2), disc(0.5, 0.45, 0.15))), "second"),
        (
            union(oval(0, 0.05, 0.11, 0.72), mirror(polygon((0.02, -0.6), (0.3, -1.02), (0.36, -0.98), (0.08, -0.56)))),
            "dark",
        ),
    ),
    "cat": (
        (union(oval(0, 0.2, 0.88, 0.72), mirror(polygon((0.16, -0.3), (0.74, -1.0), (0.86, 0.1)))), "body"),
        (mirror(disc(0.36, 0.06, 0.17)), "light"),
        (mirror(oval(0.36, 0.06, 0.07, 0.15)), "dark"),
        (
            union(
                polygon((-0.13, 0.36), (0.13, 0.36), (0, 0.5)),
                mirror(polygon((0.4, -0.36), (0.68, -0.72), (0.72, -0.2))),
            ),
            "second",
        ),
    ),
}
"""Parts by class, from back to front, the body first; the thing is their union."""

IMPLAUSIBLE_STUFF: dict[str, tuple[str, ...]] = {
    "house": ("sky", "water", "wood"),
    "fir": ("sky", "water", "wood"),
    "car": ("sky", "water", "forest"),
    "boat": ("sky", "grass", "snow", "brick"),
    "fish": ("sky", "grass", "snow", "pavement"),
    "duck": ("brick", "wood", "rock"),
    "mushroom": ("sky", "water", "pavement"),
    "balloon": ("forest", "sand", "brick"),
    "mug": ("sky", "forest", "rock"),
    "flower": ("sky", "snow", "pavement"),
    "butterfly": ("snow", "rock", "wall"),
    "cat": ("sky", "water", "snow"),
}
"""Stuff on which a class is never placed in the domain `photo`."""
