"""The errors that vitfold raises.

VitfoldError
├── UnsupportedModel   a model that no family describes, or that is wrapped; names class and reason
├── MethodError        an option of a method: unknown, out of range, contradictory, unreachable
├── ShapeError         images that the model does not take
├── FoldError          folding or unfolding at the wrong moment
├── PlanError          a saved plan that cannot be read, or does not fit; names the field
├── TrainError         a training that cannot start, or cannot go on
├── DataError          images, folders and result files that cannot be read or written
├── TuneError          no fold keeps what a tuning was asked for; names what is nearest
├── ExportError        what was written for a runtime does not give what the model gives
└── MissingExtra       an optional dependency that is not installed; names the extra

Every message is one line: the value, what was expected, what to do.
"""

import difflib
from collections.abc import Iterable


class VitfoldError(Exception):
    """Base of all errors that vitfold raises on purpose."""

    def __str__(self) -> str:
        """The message; of an error in a process that reads images, torch adds where it was."""
        text = super().__str__()
        if "Original Traceback" not in text:
            return text
        return text.rstrip().splitlines()[-1].partition(": ")[2]


class UnsupportedModel(VitfoldError):
    """The model cannot be folded."""


class MethodError(VitfoldError, ValueError):
    """A method's option does not make sense."""


class ShapeError(VitfoldError, ValueError):
    """The images do not fit the model."""


class FoldError(VitfoldError, RuntimeError):
    """Folding or unfolding at the wrong moment."""


class PlanError(VitfoldError, ValueError):
    """A saved plan cannot be used."""


class TrainError(VitfoldError, ValueError):
    """A training cannot start, or cannot go on."""


class DataError(VitfoldError, ValueError):
    """Data or files cannot be read or written."""


class TuneError(VitfoldError, ValueError):
    """No fold keeps the goal."""


class ExportError(VitfoldError, RuntimeError):
    """What was written for a runtime does not give what the model gives."""


class MissingExtra(VitfoldError, ImportError):
    """An optional dependency is missing."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'lgtm'?)"` when something known is close, else the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(names)})"


def one_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    if isinstance(error, KeyError):  # says no more than the key
        return f"{error} is missing"
    return (str(error).splitlines() or [type(error).__name__])[0]


def missing(package: str, extra: str) -> MissingExtra:
    """The error for a dependency that an extra brings."""
    return MissingExtra(f'{package} is not installed: pip install "vitfold[{extra}]"')
