"""The card of a tuned model: `card.json`, and a page in the form of the hub's cards."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitfold.errors import MissingExtra
from vitfold.lab import plots
from vitfold.saving import page as pages
from vitfold.saving.page import About, Measured
from vitfold.tools.fidelity import FIGURES, Fidelity
from vitfold.tools.results import write_text

FILE, PAGE, PICTURE = "card.json", pages.FILE, "pareto.png"


def write(card: Mapping[str, Any], place: Path) -> None:
    """The files of a card. Without matplotlib there is no picture."""
    place.mkdir(parents=True, exist_ok=True)
    drawn = _draw(card, place / PICTURE)
    write_text(place / PAGE, "\n".join(page(card, drawn)) + "\n")
    write_text(place / FILE, json.dumps(card, indent=2) + "\n")


def page(card: Mapping[str, Any], drawn: bool) -> Iterator[str]:
    """The lines of the page."""
    yield from _front(card)
    yield f"# {card['model']['name']}, {'folded' if card['method'] else 'dense'}"
    yield ""
    yield card["words"]
    yield ""
    yield from _speed(card)
    if card["fidelity"]:
        yield from _fidelity(card)
    yield from _tried(card, drawn)
    yield from _made(card)


def _front(card: Mapping[str, Any]) -> Iterator[str]:
    figures: dict[str, float] = {}
    if card["method"]:
        figures["speedup"] = round(card["speed"]["speedup"], 4)
        near = card["fidelity"] or {}
        figures |= {name: round(near[name], 6) for name in FIGURES if name in near}
    dataset = f"{card['images']} images, beside the dense model, in {where(card)}"
    yield from pages.front(_about(card), Measured(dataset, figures))


def _about(card: Mapping[str, Any]) -> About:
    model = card["model"]
    return About(model["name"], model["hub"], model["by_name"])


def _speed(card: Mapping[str, Any]) -> Iterator[str]:
    speed = card["speed"]
    yield "## Speed"
    yield ""
    machine = card["machine"]
    yield f"In {where(card)}, on {machine['processor']}, {machine['threads']} threads:"
    yield ""
    yield "| | ms a batch | images/s | times dense | quartiles |"
    yield "|---|---|---|---|---|"
    dense = speed["dense_images_per_second"]
    yield f"| dense | {card['batch_size'] / dense * 1e3:.1f} | {dense:.1f} | 1 | |"
    if card["method"]:
        fast = dense * speed["speedup"]
        yield (
            f"| folded | {card['batch_size'] / fast * 1e3:.1f} | {fast:.1f} | "
            f"{speed['speedup']:.2f} | {speed['low']:.2f} to {speed['high']:.2f} |"
        )
    yield ""
    if card["stopped"]:
        yield "It was stopped before its end: this speed is of few rounds."
        yield ""


def where(card: Mapping[str, Any]) -> str:
    """The runtime and the batch, in words."""
    kind = "INT8" if card["int8"] else "float32"
    return f"{card['runtime']}, {kind}, batch size {card['batch_size']}"


def _fidelity(card: Mapping[str, Any]) -> Iterator[str]:
    yield "## Beside the dense model"
    yield ""
    yield f"What the runtime gives beside the dense model in torch, on {card['images']} images:"
    yield ""
    yield "| | | 95 % interval |"
    yield "|---|---|---|"
    for cells in Fidelity.of_json(card["fidelity"]).rows():
        yield f"| {' | '.join(cells)} |"
    yield ""


def _tried(card: Mapping[str, Any], drawn: bool) -> Iterator[str]:
    timed = sum("share" in trial for trial in card["trials"])
    yield "## What was tried"
    yield ""
    yield f"{len(card['trials'])} folds, of which {timed} were timed (`{FILE}`)."
    if drawn:
        yield ""
        yield f"![what was tried]({PICTURE})"
    yield ""


def _made(card: Mapping[str, Any]) -> Iterator[str]:
    yield "## How"
    yield ""
    if card["command"]:
        yield from ("```", card["command"], "```", "")
    if card["method"]:
        yield from (*pages.loading(_about(card)), "")
    versions = ", ".join(f"{name} {number}" for name, number in card["versions"].items())
    yield f"{versions}, Python {card['machine']['python']}."


def _draw(card: Mapping[str, Any], path: Path) -> bool:
    """How fast and how near every fold is that was timed; whether it is drawn."""
    points: dict[str, list[tuple[float, float]]] = {}
    for trial in card["trials"]:
        if "share" in trial:
            point = 1 / trial["share"]["median"], _nearness(trial["fidelity"])
            points.setdefault(trial["method"]["name"], []).append(point)
    if not points:
        return False
    chosen = None
    if card["method"]:
        chosen = card["speed"]["speedup"], _nearness(card["chosen"]["fidelity"])
    try:
        plots.scatter(points, chosen, "times as fast as the dense model", _up(card["trials"]), path)
    except MissingExtra:
        return False
    return True


def _nearness(figures: Mapping[str, float]) -> float:
    return next(figures[name] for name in NEAR if name in figures)


NEAR = {
    "agreement": "the dense model's class",
    "cosine": "cosine of embeddings",
    "dense_cosine": "cosine of dense features",
}


def _up(trials: Sequence[Mapping[str, Any]]) -> str:
    return next(words for name, words in NEAR.items() if name in trials[0]["fidelity"])
