"""Whether a set's classes are those of the official set that it is given as."""

from c2fmae.core.errors import UserError
from c2fmae.data.suites.cells import Labels
from c2fmae.data.suites.official import CUSTOM, OFFICIAL, PROTOCOLS, imagenet_wnids, looks_like


def refuse_other_classes(kind: str, labels: Labels, where: str) -> None:
    """Refuse classes that ImageNet has not, or that the set has not: their photos would all count as wrong."""
    text = other_classes(kind, labels)
    if text is not None:
        raise UserError(f"{where}: {text}")


def other_classes(kind: str, labels: Labels) -> str | None:
    """Say which classes are not a set's, and whose they are, if they are known."""
    if kind == CUSTOM:
        return None
    entries = [entry for entry in labels if entry]
    unknown = [entry.name for entry in entries if entry.wnid not in imagenet_wnids()]
    if unknown:
        return (
            f"{len(unknown)} of its {len(entries)} classes unknown to ImageNet by WordNet id, {unknown[0]!r} for one."
            " Name class folders by it (n01440764), or give the set as custom"
        )
    official, wnids = OFFICIAL[kind], {entry.wnid for entry in entries if entry.wnid}
    outside = [entry.wnid for entry in entries if entry.wnid not in official.wnids()]
    if not outside:
        return None
    like = looks_like(wnids)
    whose = OFFICIAL[like].title if like in PROTOCOLS else "ImageNet's 1000, as validation and sketch have them"
    return (
        f"outside of {official.title}'s {len(official.wnids())} classes are {len(outside)} of its {len(wnids)},"
        f" {outside[0]} for one; all are among those of {whose}. Check what is given as what"
    )


def lacking_classes(kind: str, labels: Labels) -> str | None:
    """Say how many of the official set's classes are there, if not all are."""
    if kind == CUSTOM:
        return None
    wnids = OFFICIAL[kind].wnids()
    count = len({entry.wnid for entry in labels if entry} & {*wnids})
    return f"{count:,} of {len(wnids):,} classes: not the whole set" if count < len(wnids) else None
