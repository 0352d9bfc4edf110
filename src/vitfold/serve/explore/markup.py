"""What the page shows, as HTML with its pictures in it: nothing of a photograph becomes a file."""

import base64
import html
from collections.abc import Sequence
from io import BytesIO

from PIL import Image

from vitfold.serve.explore.explorer import Costs
from vitfold.serve.explore.speeds import Speed

TOP = 5
"""So many classes are shown."""

Row = Sequence[str]


def note(text: str, role: str = "status") -> str:
    """A line in words."""
    return f'<p class="vf-note" role="{role}">{html.escape(text)}</p>'


def alert(text: str) -> str:
    """What went wrong, in words, which screen readers say at once."""
    return f'<p class="vf-alert" role="alert">{html.escape(text)}</p>'


def figure(picture: Image.Image, alt: str, caption: str) -> str:
    """A picture with its caption."""
    file = BytesIO()
    picture.save(file, "PNG", compress_level=1)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(alt)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def refused(caption: str, why: str) -> str:
    """In the place of a picture: why there is none."""
    return (
        f'<figure><div class="vf-alert" role="alert">{html.escape(why)}</div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def figures(parts: Sequence[str]) -> str:
    """Pictures side by side, as many as there is room for."""
    return f'<div class="vf-figures">{"".join(parts)}</div>'


def answers(columns: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """The likeliest classes of several models beside each other, with their probabilities."""
    lists = [_answer(title, rows) for title, rows in columns]
    return f'<div class="vf-answers">{"".join(lists)}</div>'


def _answer(title: str, rows: Sequence[tuple[str, float]]) -> str:
    items = [
        f'<li style="--share:{share:.4f}"><span>{html.escape(name)}</span><b>{share:.1%}</b></li>'
        for name, share in rows
    ]
    return f"<section><h3>{html.escape(title)}</h3><ol>{''.join(items)}</ol></section>"


def table(caption: str, head: Row, rows: Sequence[Row]) -> str:
    """A table; all columns but the first are figures."""
    cells = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join(_row(row) for row in rows)
    return (
        f'<div class="vf-table"><table><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(row: Row) -> str:
    first, *rest = map(html.escape, row)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'


def times(rows: Sequence[Speed], caption: str) -> str:
    """Measured times."""
    cells = [
        [
            row.name,
            f"{row.milliseconds:.1f}",
            f"{row.low:.1f} to {row.high:.1f}",
            f"{row.speedup:.2f}",
        ]
        for row in rows
    ]
    return table(caption, ["", "ms a batch", "quartiles", "times as fast"], cells)


def plot(costs: Sequence[tuple[str, Costs]]) -> str:
    """What every block costs, dense and folded: bars side by side."""
    if not costs:
        return ""
    names = ["dense", *(name for name, _ in costs)]
    series = [costs[0][1].dense, *(each.folded for _, each in costs)]
    most = max(max(values) for values in series) or 1
    blocks = [
        _bars(
            block, [(name, values[block]) for name, values in zip(names, series, strict=True)], most
        )
        for block in range(len(series[0]))
    ]
    legend = "".join(
        f'<li class="vf-series-{number}">{html.escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return (
        f'<div class="vf-plot"><h3>Cost of every block, up to {most / 1e9:.3g} GFLOPs</h3>'
        f'<ul class="vf-legend">{legend}</ul>'
        f'<div class="vf-bars" role="img" aria-label="{html.escape(_in_words(costs))}">'
        f"{''.join(blocks)}</div></div>"
    )


def _bars(block: int, values: Sequence[tuple[str, int]], most: int) -> str:
    """The bars of one block."""
    bars = [
        f'<i class="vf-series-{number}" style="height:{100 * value / most:.1f}%" '
        f'title="block {block}, {html.escape(name)}: {value / 1e9:.3f} GFLOPs"></i>'
        for number, (name, value) in enumerate(values)
    ]
    return f"<div><span>{''.join(bars)}</span><small>{block}</small></div>"


def _in_words(costs: Sequence[tuple[str, Costs]]) -> str:
    """What the plot shows, for those who do not see it."""
    parts = [
        f"{name}: {each.folded[0] / 1e9:.2f} GFLOPs in the first block, "
        f"{each.folded[-1] / 1e9:.2f} in the last"
        for name, each in costs
    ]
    return "; ".join([f"Dense: {costs[0][1].dense[0] / 1e9:.2f} GFLOPs a block", *parts])
