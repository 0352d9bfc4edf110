"""LGTM's two ways of laying merged tokens out on the grid again: `python benchmarks/locations.py`.

Agreement with the dense model on the held-out digits, by mean row-major position (1d) and by mean
row, then mean column (2d).
"""

from tables import HERE, markdown

import vitfold
from vitfold.cli import show
from vitfold.data.digits import load_split
from vitfold.folding.fold import clone
from vitfold.methods.lgtm import LOCATIONS
from vitfold.saving.models import create_model
from vitfold.tools.validate import Report, validate

BATCH = 64
SHARES = (0.75, 0.6, 0.5, 0.4)
COLUMNS = ("location", "share of FLOPs", "top-1", "95 % interval", "agrees with dense")


def measure(location: str, share: float) -> Report:
    """One fold on all held-out digits."""
    dense = create_model("digits", pretrained=True).eval()
    images, labels = load_split("test")
    folded = vitfold.fold(clone(dense), vitfold.LGTM(flops=share, location=location))
    return validate(folded, zip(images.split(BATCH), labels.split(BATCH), strict=True), dense=dense)


def row(location: str, share: float) -> list[str]:
    """A row of the table."""
    report = measure(location, share)
    interval = f"{report.top1_low:.2%} to {report.top1_high:.2%}"
    return [location, f"{share}", f"{report.top1:.2%}", interval, f"{report.agreement:.2%}"]


def main() -> None:
    """Print the table, and write it as Markdown."""
    rows = [row(location, share) for share in SHARES for location in LOCATIONS]
    show.table("LGTM on held-out digits", COLUMNS, rows)
    text = "\n".join([*markdown(COLUMNS, rows), ""])
    (HERE / "locations.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
