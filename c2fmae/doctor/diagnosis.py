"""The result of a diagnosis, which a command prints."""

from dataclasses import dataclass

HEADING_WIDTH = 16  # characters


@dataclass(frozen=True)
class Diagnosis:
    """Findings, each a heading and a text, problems to fix, and the command to run next."""

    findings: list[tuple[str, str]]
    problems: list[str]
    """Messages, each with a fix."""
    next_command: str
    table: list[str]
    """Lines of a table below the findings."""

    @property
    def lines(self) -> list[str]:
        """The findings as aligned text, and the table between blank lines."""
        lines = [f"{heading:{HEADING_WIDTH}s}{text}" for heading, text in self.findings]
        return [*lines, "", *self.table, ""] if self.table else lines
