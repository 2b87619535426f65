"""Text for messages, reports and the names of directories."""

import re
from collections.abc import Sequence

from c2fmae.core.splits import TEST_NAMES, TRAIN_NAMES


def format_count(count: float, singular: str, plural: str = "") -> str:
    """Return a count with its noun in the right number; the plural is by default the singular with an s.

    >>> format_count(1, "class", "classes"), format_count(1000, "class", "classes"), format_count(0.25, "epoch")
    ('1 class', '1,000 classes', '0.25 epochs')
    """
    number = f"{count:,}" if isinstance(count, int) else f"{count:.4g}"
    return f"{number} {singular if count == 1 else plural or singular + 's'}"


_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
"""Characters that move the cursor, ring, recolour or reorder text, except for the line break and the tab."""
_MAX_SLUG_LENGTH = 60  # characters for each text: a file system allows 255 bytes for all
_SPLIT_NAME = re.compile(rf"({'|'.join((*TRAIN_NAMES, *TEST_NAMES))})(?![A-Za-z])")


def escape_controls(text: str) -> str:
    """Return text in which control characters are visible, so that names in it cannot command a terminal.

    >>> escape_controls("red \x1b[31m, reversed \u202e")
    'red \\\\x1b[31m, reversed \\\\u202e'
    """
    return re.sub(f"[{_CONTROLS}]", lambda match: match[0].encode("unicode_escape").decode(), text)


def escape_lines(text: str) -> str:
    """Return text on one line: line breaks and tabs are visible like other control characters."""
    return re.sub(r"[\n\t]", lambda match: match[0].encode("unicode_escape").decode(), escape_controls(text))


def indent_message(text: str) -> str:
    """Return a message with control characters escaped and all lines but the first indented.

    So a name with a line break in it does not look like another message.
    """
    return re.sub(r"\n(?! )", "\n  ", escape_controls(text))


def shorten_words(text: str, limit: int = 400) -> str:
    """Return text in which the middle of words longer than `limit` characters, such as wrong paths, is left out.

    >>> shorten_words("one 0123456789012345", limit=10)
    'one 01234…12345'
    """
    half = limit // 2
    return re.sub(rf"(\S{{{half}}})\S+(\S{{{half}}})", r"\1…\2", text)


def slugify(*texts: str) -> str:
    """Return texts joined into the name of a directory; of a path or URL, only the last component is used.

    If that is the name of a split, the component before it is used too.

    >>> slugify("knn", "/data/voc/train-*.tar"), slugify("timm:vit_tiny@weights/vit.pth")
    ('knn-voc-train.tar', 'timm-vit-tiny-vit.pth')
    """
    return "-".join(filter(None, map(_slugify_text, texts)))


def name_few(names: Sequence[str], plural: str, *, most: int = 3) -> list[str]:
    """Return names to be parts of a name: up to `most` themselves, more as their number, such as "7-models"."""
    return list(names) if len(names) <= most else [f"{len(names)}-{plural}"]


def _slugify_text(text: str) -> str:
    model, _, path = text.rpartition("@")  # timm:NAME@FILE
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    num_parts = 2 if parts and _SPLIT_NAME.match(parts[-1]) else 1
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join([model, *parts[-num_parts:]]))
    return re.sub(r"-+(?=\.)", "", slug).strip("-.")[:_MAX_SLUG_LENGTH]
