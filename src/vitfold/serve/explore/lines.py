"""The Python and the command that give a fold, to be copied and run."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitfold.serve.explore.explorer import OWN, Pick

NO_COMMAND = "# there is no command: the model comes folded, and its own fold stays; see the Python"


@dataclass(frozen=True)
class Origin:
    """How the command line was told to make a model.

    pretrained: whether with published weights; None where the model takes no word on that.
    arguments: for its constructor or function.
    plan: a saved plan that lies on it.
    folded: whether it came folded.
    """

    name: str
    pretrained: bool | None = True
    arguments: Mapping[str, Any] = field(default_factory=dict)
    plan: Path | None = None
    device: str = "cpu"
    folded: bool = False


def python(origin: Origin, pick: Pick) -> str:
    """Python that makes the model, and folds it so."""
    options = {**({"pretrained": True} if origin.pretrained else {}), **origin.arguments}
    call = ", ".join([repr(origin.name), *(f"{key}={v!r}" for key, v in options.items())])
    lines = ["import vitfold", ""]
    if origin.pretrained is False:
        lines = ["import torch", *lines, "torch.manual_seed(0)  # random weights"]
    lines.append(f"model = vitfold.create_model({call}).eval()")
    if origin.plan is not None:
        lines.append(f"model = vitfold.load({str(origin.plan)!r}, model)")
    if pick.method != OWN:
        lines.append(f"vitfold.fold(model, {pick.method!r}, flops={pick.share:g})")
    return "\n".join(lines).replace("'", '"') if _plain(lines) else "\n".join(lines)


def _plain(lines: list[str]) -> bool:
    """Whether quotes may be double without a change of what they hold."""
    return not any(letter in line for line in lines for letter in '"\\')


def command(origin: Origin, pick: Pick, runtime: str, batch: int) -> str:
    """A command that measures the fold, in this runtime and at this batch size."""
    if origin.folded and pick.method != OWN:
        return NO_COMMAND
    words = ["vitfold", "bench", origin.name]
    for key, value in origin.arguments.items():
        words += ["--model-kwargs", f"{key}={value!r}"]
    if origin.pretrained is False:
        words.append("--no-pretrained")
    if origin.plan is not None:
        words += ["--plan", str(origin.plan)]
    if origin.device != "cpu":
        words += ["--device", origin.device]
    if pick.method != OWN:
        words += ["--method", pick.method, "--flops", f"{pick.share:g}"]
    return shlex.join([*words, "--runtime", runtime, "-b", str(batch)])
