"""What the page shows for what was chosen on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vitfold.errors import VitfoldError
from vitfold.exporting.runtime import Runtime
from vitfold.serve.explore import lines, markup
from vitfold.serve.explore.explorer import OWN, Explorer, Photograph, Pick, Sight, refusal
from vitfold.serve.explore.speeds import Stopwatch
from vitfold.tools.draw import plain
from vitfold.tools.fidelity import FIGURES
from vitfold.tools.looks import Look
from vitfold.tools.measure import Progress

NOTHING = "none"
"""What is chosen where one method is looked at by itself."""

EMPTY = "Drop a photograph, or take an example."


@dataclass(frozen=True)
class Asked:
    """What is chosen on the page.

    other: a second method at the same budget, or `NOTHING`.
    """

    photograph: Photograph | None
    method: str
    share: float
    other: str = NOTHING
    block: int = 0
    runtime: str = "eager"
    batch: int = 1

    @property
    def picks(self) -> list[Pick]:
        """The folds to show, each once."""
        names = [self.method, *([self.other] if self.other != NOTHING else [])]
        shares = [1.0 if name == OWN else round(self.share, 3) for name in names]
        return list(dict.fromkeys(map(Pick, names, shares)))


class Views:
    """HTML and text for what is asked."""

    def __init__(self, explorer: Explorer, origin: lines.Origin) -> None:
        self.explorer, self.origin = explorer, origin
        self.stopwatch = Stopwatch(explorer)

    def pictures(self, asked: Asked) -> str:
        """The photograph, and its tokens after the block."""
        photograph = asked.photograph
        if photograph is None:
            return markup.note(EMPTY)
        image = plain(photograph.pixels.float() / 255)
        alt = f"{photograph.name}, as the model sees it"
        first = markup.figure(image, alt, f"{photograph.name}, as the model sees it")
        shown = [self._tokens(photograph, pick, asked.block) for pick in asked.picks]
        return markup.figures([first, *shown])

    def _tokens(self, photograph: Photograph, pick: Pick, block: int) -> str:
        try:
            picture = self.explorer.picture(photograph, pick, block)
            sight = self.explorer.sight(photograph, pick)
        except (VitfoldError, RuntimeError) as error:
            return markup.refused(str(pick), refusal(error))
        words = f"{sight.tokens(block)} of {sight.first} tokens leave block {block}"
        alt = f"{photograph.name} by {pick}: every group of tokens in its mean colour; {words}"
        return markup.figure(picture, alt, f"{pick}: {words}")

    def answers(self, asked: Asked) -> str:
        """What the dense model and the folds say, and how far apart they are."""
        photograph = asked.photograph
        if photograph is None:
            return ""
        sights = self._sights(photograph, asked.picks)
        looks = {"dense": self.explorer.seen(photograph)}
        looks |= {str(pick): sight.look for pick, sight in sights.items()}
        columns = [(name, self._likeliest(each)) for name, each in looks.items()]
        said = markup.answers(columns) if all(rows for _, rows in columns) else ""
        return said + self._lost(photograph, sights)

    def _sights(self, photograph: Photograph, picks: Sequence[Pick]) -> dict[Pick, Sight]:
        """Those that can be; why others cannot stands in the place of their pictures."""
        sights = {}
        for pick in picks:
            try:
                sights[pick] = self.explorer.sight(photograph, pick)
            except (VitfoldError, RuntimeError):
                continue
        return sights

    def _likeliest(self, look: Look) -> list[tuple[str, float]]:
        """The likeliest classes; none of a model without."""
        if look.logits is None or look.logits.dim() != 2:
            return []
        top = look.logits[0].float().softmax(0).topk(min(markup.TOP, look.logits.shape[1]))
        names = self.explorer.names or [f"class {i}" for i in range(look.logits.shape[1])]
        return [(names[i], float(p)) for p, i in zip(top.values, top.indices.tolist(), strict=True)]

    def _lost(self, photograph: Photograph, sights: dict[Pick, Sight]) -> str:
        """How near the folds are to the dense model, and what they cost."""
        if not sights:
            return ""
        costs = [self.explorer.costs(photograph, pick).share for pick in sights]
        last = self.explorer.depth - 1
        rows = [
            ["share of the dense FLOPs", *(f"{share:.3f}" for share in costs)],
            ["tokens behind the last block", *(str(s.tokens(last)) for s in sights.values())],
        ]
        for name, words in FIGURES.items():
            values = [sight.figures.get(name) for sight in sights.values()]
            if None not in values:
                rows.append([words, *(_figure(name, value) for value in values)])
        return markup.table("Beside the dense model", ["", *map(str, sights)], rows)

    def costs(self, asked: Asked) -> str:
        """What every block costs."""
        photograph = asked.photograph
        if photograph is None:
            return ""
        picks = self._sights(photograph, asked.picks)
        return markup.plot([(str(pick), self.explorer.costs(photograph, pick)) for pick in picks])

    def python(self, asked: Asked) -> str:
        """The Python that gives the first fold."""
        return lines.python(self.origin, asked.picks[0])

    def command(self, asked: Asked) -> str:
        """The command that gives it."""
        return lines.command(self.origin, asked.picks[0], asked.runtime, asked.batch)

    def speeds(self, asked: Asked) -> str:
        """What was measured before for what is asked, or that nothing was."""
        known = self.stopwatch.known(asked.picks, asked.runtime, asked.batch)
        if known is None:
            return markup.note("Not measured yet, with this choice: press Measure.")
        return markup.times(known, _place(asked))

    def measured(self, asked: Asked, progress: Progress = lambda: None) -> str:
        """The times, measured now where they were not before."""
        try:
            self.stopwatch.measure(asked.picks, asked.runtime, asked.batch, progress)
        except (VitfoldError, RuntimeError) as error:
            return markup.alert(refusal(error))
        return self.speeds(asked)


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "agreement":
        return {0.0: "no", 1.0: "yes"}.get(value, f"{value:.1%}")
    return f"{value:.4f}"


def _place(asked: Asked) -> str:
    """Where a time was taken, in words."""
    runtime, threads = Runtime(asked.runtime), torch.get_num_threads()
    words = f"{_count(asked.batch, 'image')} in {runtime}"
    if runtime.in_torch:
        words += f", {_count(threads, 'thread')}"
    return f"{words}, measured in turn"


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"
