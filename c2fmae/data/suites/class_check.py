"""Whether a set's classes are those of the official set that it is given as."""

from c2fmae.core.errors import UserError
from c2fmae.data.suites.cells import SetLabels
from c2fmae.data.suites.official import CUSTOM, OFFICIAL_SETS, SUBSET_SUITES, guess_suite, imagenet_wnids


def check_classes(suite: str, labels: SetLabels, location: str) -> None:
    """Refuse classes that ImageNet has not, or that the set has not: their photos would all count as wrong."""
    text = describe_unexpected_classes(suite, labels)
    if text is not None:
        raise UserError(f"{location}: {text}")


def describe_unexpected_classes(suite: str, labels: SetLabels) -> str | None:
    """Say which classes are not a set's, and whose they are, if they are known."""
    if suite == CUSTOM:
        return None
    entries = [entry for entry in labels if entry]
    unknown = [entry.name for entry in entries if entry.wnid not in imagenet_wnids()]
    if unknown:
        return (
            f"{len(unknown)} of its {len(entries)} classes unknown to ImageNet by WordNet id, {unknown[0]!r} for one."
            " Name class folders by it (n01440764), or give the set as custom"
        )
    official, wnids = OFFICIAL_SETS[suite], {entry.wnid for entry in entries if entry.wnid}
    outside = [entry.wnid for entry in entries if entry.wnid not in official.wnids()]
    if not outside:
        return None
    like = guess_suite(wnids)
    whose = (
        OFFICIAL_SETS[like].display_name
        if like in SUBSET_SUITES
        else "ImageNet's 1000, as validation and sketch have them"
    )
    return (
        f"outside of {official.display_name}'s {len(official.wnids())} classes are {len(outside)} of its {len(wnids)},"
        f" {outside[0]} for one; all are among those of {whose}. Check what is given as what"
    )


def describe_missing_classes(suite: str, labels: SetLabels) -> str | None:
    """Say how many of the official set's classes are there, if not all are."""
    if suite == CUSTOM:
        return None
    wnids = OFFICIAL_SETS[suite].wnids()
    count = len({entry.wnid for entry in labels if entry} & {*wnids})
    return f"{count:,} of {len(wnids):,} classes: not the whole set" if count < len(wnids) else None
