"""Comparison of a set's classes with those of its suite."""

from c2fmae.core.errors import UserError
from c2fmae.data.suites.label_map import SetLabels
from c2fmae.data.suites.suite import SUITES, Suite, find_suites_with_classes


def check_classes(suite: Suite, labels: SetLabels, location: str) -> None:
    """Raise an error for classes that the suite does not have: all their images would count as misclassified."""
    text = describe_unexpected_classes(suite, labels)
    if text is not None:
        raise UserError(f"{location}: {text}")


def describe_unexpected_classes(suite: Suite, labels: SetLabels) -> str | None:
    """Return a sentence about classes that the suite does not have, and the suites that do; None if there are none."""
    if suite.wnids is None:
        return None
    entries = [entry for entry in labels if entry]
    unexpected = [entry for entry in entries if entry.wnid not in suite.wnids()]
    if not unexpected:
        return None
    others = find_suites_with_classes({entry.wnid or entry.name for entry in entries})
    if others:
        hint = (
            f"all of them are classes of {', '.join(SUITES.get(name).title for name in others)}."
            " Check that the set is given as the right suite"
        )
    else:
        hint = "Name class directories by WordNet id (n01440764), or give the set as a custom one"
    count = f"{len(unexpected)} of its {len(entries)} classes are not classes of {suite.title}"
    return f"{count} (for example {unexpected[0].wnid or unexpected[0].name!r}){'; ' if others else '. '}{hint}"


def describe_missing_classes(suite: Suite, labels: SetLabels) -> str | None:
    """Return a sentence about the number of the suite's classes that a set has; None if it has all of them."""
    if suite.wnids is None:
        return None
    wnids = suite.wnids()
    count = len({entry.wnid for entry in labels if entry} & {*wnids})
    return f"{count:,} of {len(wnids):,} classes: the set is incomplete" if count < len(wnids) else None
