"""Train the embedded digits model: `python scripts/train_digits.py`.

Saves it as any other model, with weights in half precision, and a card that says how they came
about. The held-out digits are looked at once, at the end.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.progress import Progress
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from vitfold.data.digits import load_split
from vitfold.saving import plans
from vitfold.saving.models import create_model
from vitfold.saving.sources import Origin, packaged
from vitfold.saving.subject import describe, describe_dense

ASSETS = Path(__file__).parent.parent / "src" / "vitfold" / "assets" / "digits"

LICENCE = "Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, CC BY 4.0"
INPUTS = (
    "8x8 digits enlarged to 46 to 54 px on a canvas of 56 px with a dim, noisy background; in "
    "training turned by up to 0.2 rad; a quarter of them, stratified, is held out"
)


def train(
    model: Any, patch: int, epochs: int, batch_size: int, lr: float, decay: float
) -> list[Any]:
    """Train in place on patches of `patch` pixels; a row for every epoch."""
    model.set_input_size(patch_size=patch)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=decay)
    schedule = CosineLRScheduler(optimizer, epochs, lr_min=lr / 100, warmup_t=min(3, epochs - 1))
    curve = []
    with Progress() as progress:
        for epoch in progress.track(range(epochs), description=f"patches of {patch} px"):
            schedule.step(epoch)
            loss, accuracy = train_epoch(model, optimizer, batch_size)
            curve.append({"patch": patch, "loss": round(loss, 4), "accuracy": round(accuracy, 4)})
            progress.console.print(curve[-1])
    return curve


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int
) -> tuple[float, float]:
    """One pass over digits that are placed anew; mean loss and accuracy."""
    images, labels = load_split("train")
    order = torch.randperm(len(labels)).split(batch_size)
    model.train()
    sums = torch.zeros(2)
    for index in order:
        logits = model(images[index])
        loss = F.cross_entropy(logits, labels[index], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        hits = (logits.argmax(1) == labels[index]).sum()
        sums += torch.tensor([float(loss.detach()) * len(index), float(hits)])
    return float(sums[0]) / len(labels), float(sums[1]) / len(labels)


def rounded(model: nn.Module) -> nn.Module:
    """The model with weights that half precision can hold, in place."""
    model.load_state_dict({name: w.half().float() for name, w in model.state_dict().items()})
    return model.eval()


def held_out(model: nn.Module) -> float:
    """Accuracy on the held-out digits."""
    images, labels = load_split("test")
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def publish(model: nn.Module, directory: Path) -> None:
    """Save the model as the one that comes with vitfold: a dense one of timm's."""
    known = plans.read_plan(packaged.directory("digits"))
    origin = Origin(known.model.source, known.model.name, known.model.arguments)
    new = describe_dense(model, backbone=True, origin=origin)
    plan = replace(describe(model, backbone=True), model=new, weights=known.weights)
    plans.write(model, directory, plan)


def main(
    coarse_epochs: Annotated[int, typer.Option(min=1)] = 60,
    epochs: Annotated[int, typer.Option(min=1)] = 15,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1)] = 32,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
    output: Path = ASSETS,
) -> None:
    """Train on coarse patches first, which is quick, then on the model's own; round to half
    precision, test, and write weights and card."""
    torch.manual_seed(seed)
    model = create_model("digits")
    curve = train(model, 8, coarse_epochs, batch_size, lr, weight_decay)
    curve += train(model, 4, epochs, batch_size, lr / 2, weight_decay)
    rounded(model)
    card = {
        "architecture": packaged.plan("digits")["model"]["arguments"],
        "command": " ".join(["python", "scripts/train_digits.py", *sys.argv[1:]]),
        "seed": seed,
        "epochs": {"patches of 8 px": coarse_epochs, "patches of 4 px": epochs},
        "batch_size": batch_size,
        "lr": {"patches of 8 px": lr, "patches of 4 px": lr / 2},
        "weight_decay": weight_decay,
        "held_out_accuracy": round(held_out(model), 4),
        "inputs": INPUTS,
        "data": LICENCE,
        "curve": curve,
    }
    output.mkdir(parents=True, exist_ok=True)
    publish(model, output)
    (output / "training.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"held-out accuracy {card['held_out_accuracy']:.2%}")


if __name__ == "__main__":
    typer.run(main)
