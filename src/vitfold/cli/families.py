"""`vitfold families`: what can be folded."""

from vitfold.cli import show


def families() -> None:
    """What can be folded with the libraries installed here, and what is refused, and why."""
    from vitfold.folding.families import families as families_

    show.console.print(families_(), markup=False, soft_wrap=True)
