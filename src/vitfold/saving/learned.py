"""What a method learned, saved beside a plan: tensors under a prefix of their own."""

import torch
from torch import Tensor, nn

from vitfold.errors import PlanError
from vitfold.folding.calls import folds
from vitfold.folding.fold import LEARNED
from vitfold.methods.learned import Learned
from vitfold.saving import weights
from vitfold.saving.schema import Plan
from vitfold.saving.weights import Tensors

PREFIX = f"{LEARNED}."


def state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that the method of a model has learned, by name; none where it learns nothing."""
    states = [record.learned.state_dict(prefix=PREFIX) for record in folds(model) if record.learned]
    return states[0] if states else {}


def is_learned(name: str) -> bool:
    """Whether a tensor of that name is what a method learned, and not the model's own."""
    return name.startswith(PREFIX)


def split(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's own tensors, and those that its method learned."""
    lessons = {name: tensor for name, tensor in tensors.items() if is_learned(name)}
    return {name: tensor for name, tensor in tensors.items() if name not in lessons}, lessons


def check(tensors: Tensors, plan: Plan) -> None:
    """Refuse what the method of a plan cannot have learned."""
    with torch.device("meta"):  # what a plan claims may be larger than any memory
        module = _module(plan)
    file = plan.weights.file if plan.weights else "weights"
    reference = {} if module is None else module.state_dict(prefix=PREFIX)
    precise = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    dtype = torch.float64 if precise else torch.float32
    weights.check(tensors, {name: t.to(dtype) for name, t in reference.items()}, file)
    module = _module(plan)
    if module is None:
        return
    module.to(dtype)
    _fill(module, tensors)
    module.constrain()
    for name, bounded in module.state_dict(prefix=PREFIX).items():
        if not torch.equal(bounded, tensors[name]):
            raise PlanError(f"{file}: {name} has values out of bounds: it is not what was saved")


def _module(plan: Plan) -> Learned | None:
    if plan.method is None or plan.model.trunk is None:
        return None
    return plan.method.learn(plan.model.trunk.depth, plan.model.trunk.width)


def copy(tensors: Tensors, model: nn.Module) -> None:
    """Give the method of a model what `check` accepts."""
    for record in folds(model):
        if record.learned is not None:
            _fill(record.learned, tensors)


def _fill(module: nn.Module, tensors: Tensors) -> None:
    module.load_state_dict({name.removeprefix(PREFIX): t for name, t in tensors.items()})
