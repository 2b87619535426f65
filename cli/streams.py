"""Standard streams that show control characters of names instead of sending them to the terminal."""

import io
import sys
from typing import Any, TextIO, cast

from c2fmae.core.text import escape_controls


class EscapedStream:
    """A text stream that escapes what is printed, and passes everything else on."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # rich writes its colours to this attribute of a stream

    def write(self, text: str) -> int:
        """Write text with control characters escaped; it may return to the start of the line, as progress bars do."""
        line = text.removeprefix("\r")
        self.rich_proxied_file.write(text[: len(text) - len(line)] + escape_controls(line))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def protect_streams() -> None:
    """Escape all that is printed to stdout and stderr, and replace what their encoding lacks."""
    sys.stdout, sys.stderr = map(_protect_stream, (sys.stdout, sys.stderr))


def _protect_stream(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):  # closed, or protected already
        return stream
    stream.reconfigure(errors="replace")  # so that a terminal without α does not fail
    return cast(TextIO, EscapedStream(stream))
