"""Tables as they are printed: in a terminal within its width, in a pipe one record a line and nothing left out."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxopt.errors import word

EMPTY = "-"  # what stands in a pipe for an empty cell in front of others, so that these keep their columns
_GAP = "  "


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    numbers: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """Print records beneath their titles.

    Args:
        console: where to.
        columns: the title of each.
        rows: a record each, with a cell per column.
        title: of the table, on a line above it; none when empty.
        numbers: columns that are set to the right.
        whole: columns that are never parted in a terminal, such as names to be copied.
    """
    records = [[word(" ".join(cell.split()), len(cell)) for cell in row] for row in rows]  # names may hold line breaks
    if console.is_terminal:
        console.print(_boxed(columns, records, title, numbers, whole))
        return
    for line in (*([title] if title else []), *aligned(columns, records, numbers)):
        console.print(line, markup=False, emoji=False, soft_wrap=True)


def aligned(columns: Sequence[str], records: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> list[str]:
    """Return titles and records, a line each, aligned by blanks whatever that makes of their length.

    Args:
        columns: the title of each.
        records: a cell per column.
        numbers: columns that are set to the right.
    """
    lines = [list(columns), *(_filled(record) for record in records)]
    widths = [max(cell_len(line[at]) for line in lines) for at in range(len(columns))]
    return [
        _GAP.join(
            _set(cell, width, right=title in numbers) for cell, width, title in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    ]


def _filled(record: Sequence[str]) -> list[str]:
    """Return the cells of a record without those behind the last that says something, and a sign for empty ones."""
    last = max((at for at, cell in enumerate(record) if cell), default=0)
    return [cell or (EMPTY if at < last else "") for at, cell in enumerate(record)]


def _set(cell: str, width: int, *, right: bool) -> str:
    """Fill a cell with blanks; wide characters take two columns."""
    blanks = " " * (width - cell_len(cell))
    return blanks + cell if right else cell + blanks


def _boxed(
    columns: Sequence[str],
    records: Sequence[Sequence[str]],
    title: str,
    numbers: Sequence[str],
    whole: Sequence[str],
) -> Table:
    """Return the table of a terminal, which folds what is wider than its column."""
    table = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        longest = max((cell_len(record[len(table.columns)]) for record in records), default=0)
        table.add_column(
            column,
            justify="right" if column in numbers else "left",
            overflow="fold",
            no_wrap=column in whole,
            min_width=longest if column in whole else None,
        )
    for record in records:
        table.add_row(*(Text(cell) for cell in record))
    return table
