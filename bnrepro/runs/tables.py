"""Tables as CSV files, and back.

A value comes back as it was: numbers as numbers, texts as texts, bit for bit. A text that would read as something else
("128", "", "true") is written in quotation marks.
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from bnrepro.runs import record
from bnrepro.system import reading as stored

Row = dict[str, Any]
"""A row of a table."""
TEXT = frozenset({"part", "variant", "status", "precision", "device", "config_hash", "quantity"})
"""Columns that hold texts only, and so need no quotation marks."""


def write_rows(file: Path, rows: list[Row], columns: list[str] | None = None) -> None:
    """``rows`` as CSV; the first of ``columns`` comes first, then what else the rows hold, then the rest of them."""
    known = dict.fromkeys(columns or [])
    first = list(known)[:1]
    extra = [key for row in rows for key in row if key not in known]
    names = list(dict.fromkeys([*first, *extra, *known]))
    written = [{name: to_cell(row.get(name), name in TEXT) for name in names} for row in rows]
    record.write_csv(file, names, written)


def read_rows(file: Path, within: Path | None = None) -> list[Row]:
    """The rows that `write_rows` wrote; ``within`` is as for `stored.read_bytes`.

    Raises:
        ValueError: it is not such a file.
        OSError: it cannot be read.
    """
    try:
        text = stored.read_bytes(file, within=within).decode()
        header, *rows = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
        if not text.endswith("\n"):
            raise ValueError("its last line is cut off" if text else "it is empty")
        if len(set(header)) < len(header):
            raise ValueError("two columns have the same name")
        for number, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise ValueError(f"line {number} has {len(row)} values for {len(header)} columns")
        return [{name: from_cell(cell, name in TEXT) for name, cell in zip(header, row, strict=True)} for row in rows]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is not UTF-8 text") from error
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{file.name}: {error}") from error


def to_cell(value: Any, text: bool = False) -> str:
    """A value as a cell of a CSV file; None is an empty one."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if text:
        return str(value)
    return json.dumps(str(value), ensure_ascii=False) if _ambiguous(str(value)) else str(value)


def from_cell(cell: str, text: bool = False) -> Any:
    """The value that `to_cell` wrote."""
    if cell == "":
        return None
    if text:
        return cell
    if cell.startswith('"'):
        return from_json(cell)  # it refuses what json.loads takes: halves of characters
    if cell in ("true", "false"):
        return cell == "true"
    if re.fullmatch(r"-?[0-9]{1,18}", cell):  # a longer one is beyond what arrays and tables can hold as an integer
        return int(cell)
    try:
        return float(cell)
    except ValueError:
        return cell


def _ambiguous(text: str) -> bool:
    return text.startswith('"') or not isinstance(from_cell(text), str)


def plain(value: Any) -> Any:
    """A number of NumPy or torch as Python's own, which is what files and comparisons know."""
    return value.item() if hasattr(value, "item") else value
