"""Which models can be folded: finding the trunk of a model, and reasons against it."""

import importlib
import pkgutil
from collections.abc import Iterator

from torch import nn

from vitfold.errors import UnsupportedModel
from vitfold.folding.blocks.names import full_name
from vitfold.folding.families.base import Family
from vitfold.folding.families.reasons import TEXT, advice, reason
from vitfold.folding.families.registry import family_of, register_family
from vitfold.folding.families.table import Families, tabulate
from vitfold.methods.plugins import FAMILIES_GROUP, load_plugins

__all__ = ["Families", "Family", "families", "family_of", "find", "register_family"]

for _file in pkgutil.iter_modules(__path__):  # a family registers itself when it is imported
    importlib.import_module(f"{__name__}.{_file.name}")

WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel",
    "DataParallel": "DataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "OptimizedModule": "torch.compile",
    "FSDPModule": "fully_shard",
}


def find(model: nn.Module) -> Family:
    """The family that describes the one trunk in `model`, or an error with the reason why nothing
    can be folded."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"{type(model).__name__} is not a torch.nn.Module: give a model")
    _refuse_wrappers(model)
    trunks = _trunks(model)
    if not trunks and load_plugins(FAMILIES_GROUP):
        trunks = _trunks(model)
    if not trunks:
        raise UnsupportedModel(f"{full_name(type(model))} cannot be folded: {_why(model)}")
    if len(trunks) > 1:
        names = ", ".join(full_name(type(trunk)) for _, trunk in trunks)
        raise UnsupportedModel(
            f"{full_name(type(model))} has {len(trunks)} foldable parts ({names}): fold one of them"
        )
    name, trunk = trunks[0]
    family = family_of(type(trunk)) or Family  # it has one
    return family(trunk, tuple(_around(model, name)))


def _trunks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of a model that a family describes, by their paths."""
    return [(name, m) for name, m in model.named_modules() if family_of(type(m))]


def _around(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """The modules that contain the one at `path`, from the inside out."""
    while path:
        path = path.rpartition(".")[0]
        yield model.get_submodule(path)


def families() -> Families:
    """The models that fold with the libraries installed here, and the others with a reason."""
    load_plugins(FAMILIES_GROUP)
    return tabulate()


def _why(model: nn.Module) -> str:
    """The reason against a model, or against the first of its modules that has one."""
    if why := reason(type(model)):
        return why
    for module in model.modules():
        why = reason(type(module))
        if why not in (None, TEXT):  # a part that reads text is no reason against one for images
            return f"of its {full_name(type(module))}, {why}"
    return f"no family describes {type(model).__name__}, nor any part of it: {advice(model)}"


def _refuse_wrappers(model: nn.Module) -> None:
    for module in model.modules():
        for cls in type(module).__mro__:
            if cls.__name__ in WRAPPERS:
                wrapper, remedy = WRAPPERS[cls.__name__], "fold before wrapping"
                if wrapper == "DataParallel":  # its copies would run the model they come from
                    remedy = "use DistributedDataParallel, and fold before wrapping"
                raise UnsupportedModel(f"the model is wrapped in {wrapper}: {remedy}")
