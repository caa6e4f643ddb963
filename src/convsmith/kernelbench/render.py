"""A report as a table that a person reads, the verdict in its last line."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from convsmith.kernelbench.report import Report, Row, Verdict

STYLE = {
    Verdict.RIGHT: "green",
    Verdict.WRONG: "bold red",
    Verdict.UNKNOWN: "yellow",
    Verdict.NOT_APPLICABLE: "dim",
}

RECIPE = (
    "Weights are those of torch.manual_seed(0); Model(*get_init_inputs()), and the gradient of an "
    "output y is torch.randn(y.shape, generator=torch.Generator(y.device).manual_seed(2))."
)


def report(found: Report) -> RenderableType:
    """The report for ``rich.console.Console.print``."""
    table = Table("test", "verdict", "expected", "came", box=None, padding=(0, 2, 0, 0))
    for row in found.rows:
        style = "cyan" if row.beside else STYLE[row.verdict]
        table.add_row(Text(row.test), Text(_word(row), style), Text(row.expected), Text(row.came))
    parts: list[RenderableType] = [Text(f"{found.solution} against {found.problem}"), table]
    smallest: dict[str, list[str]] = {}
    for row in found.rows:
        if row.smallest:
            smallest.setdefault(row.smallest, []).append(row.test)
    if smallest:
        parts.append(Text(f"\nThe smallest input found for each failure. {RECIPE}"))
    for line, tests in smallest.items():
        parts += [Text(f"  {'; '.join(tests)}:", "red"), Text(f"    {line}")]
    parts += [Text(note) for note in found.notes]
    parts.append(Text(f"\n{found.sentence}", STYLE[found.verdict]))
    return Group(*parts)


def _word(row: Row) -> str:
    if row.beside:
        return "holds" if row.verdict is Verdict.RIGHT else "does not hold"
    return row.verdict.value
