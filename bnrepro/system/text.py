"""Tables as text, as wide as the terminal."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from bnrepro.system.reading import printable


def terminal_width() -> int | None:
    """Columns of the terminal that tables are read on, or COLUMNS; None where they go into a file or a pipe."""
    columns = os.environ.get("COLUMNS", "")
    if not (columns.isdecimal() and int(columns)) and not (sys.stdout and sys.stdout.isatty()):
        return None
    return max(40, shutil.get_terminal_size().columns)


def wrapped(text: str, width: int | None, indent: int) -> str:
    """``text`` folded to ``width`` columns, later lines indented; as it is where there is no width."""
    text = printable(text).replace("\n", " ")
    if width is None:
        return text
    return "\n".join(textwrap.wrap(text, width, subsequent_indent=" " * indent, drop_whitespace=True))


def fitted(lines: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """`aligned`; on a narrower terminal as several tables one below the other, each of which has the first column."""
    whole, width = aligned(lines, left), terminal_width()
    if width is None or len(lines[0]) < 3 or max(map(len, whole.splitlines())) <= width:
        return whole
    parts, chosen = [], [0]
    for column in range(1, len(lines[0])):
        wider = _only(lines, [*chosen, column], left)
        if len(chosen) > 1 and max(map(len, wider.splitlines())) > width:
            parts.append(_only(lines, chosen, left))
            chosen = [0]
        chosen.append(column)
    return "\n\n".join([*parts, _only(lines, chosen, left)])


def _only(lines: Sequence[Sequence[str]], columns: Sequence[int], left: Sequence[int]) -> str:
    places = [place for place, column in enumerate(columns) if column in left]
    return aligned([[line[column] for column in columns] for line in lines], places)


def aligned(lines: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Columns of text, two spaces apart; those in ``left`` start at the same place, the others end there."""
    lines = [[printable(cell).replace("\n", " ") for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    texts = []
    for line in lines:
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)
