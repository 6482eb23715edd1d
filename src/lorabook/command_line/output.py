"""What a command prints to standard output, by one process of several; progress and errors go to standard error elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from lorabook.training.distributed import is_main


def say(text: str) -> None:
    """Print a line at once."""
    if is_main():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def say_json(value: object) -> None:
    """Print a value as one line of JSON, in ASCII."""
    say(json.dumps(value))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Text in columns: numbers to the right, all else to the left.

    Example:
        >>> print(table(("layer", "rank"), [("q_proj", 8), ("v_proj", 1024)]))
        layer    rank
        q_proj      8
        v_proj  1,024
    """
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    numeric = [bool(rows) and all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]
    widths = [max(len(line[column]) for line in [header, *cells]) for column in range(len(header))]
    lines = []
    for line in [header, *cells]:
        columns = zip(line, widths, numeric, strict=True)
        lines.append("  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in columns).rstrip())
    return "\n".join(lines)
