"""Text for messages and reports."""


def format_count(count: int, singular: str, plural: str) -> str:
    """Return a count with its noun in the right number.

    >>> format_count(1, "class", "classes"), format_count(1000, "class", "classes")
    ('1 class', '1,000 classes')
    """
    return f"{count:,} {singular if count == 1 else plural}"
