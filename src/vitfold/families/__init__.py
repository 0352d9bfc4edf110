"""Which models can be folded: how a trunk is found in a model, and what is refused."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from vitfold.blocks.kinds import KINDS, Kind, full_name
from vitfold.errors import UnsupportedModel
from vitfold.families import hf, timm
from vitfold.families.trunks import Size, Trunk
from vitfold.layout import Layout

TRUNKS: dict[str, Trunk] = timm.TRUNKS | hf.TRUNKS

WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel",
    "DataParallel": "DataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "OptimizedModule": "torch.compile",
    "FSDPModule": "fully_shard",
}


@dataclass(frozen=True, eq=False)
class Found:
    """A trunk in a model, and what is known of its kind."""

    trunk: Any
    kind: Trunk
    blocks: tuple[nn.Module, ...]
    kinds: tuple[Kind, ...]

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def prefix(self) -> int:
        return self.kind.prefix(self.trunk)

    @property
    def size(self) -> Size:
        """Channels, height and width of the images that the model is made for."""
        return self.kind.size(self.trunk)

    def example(self, batch: int = 1) -> dict[str, Any]:
        """Arguments of the right shapes for a call of the trunk."""
        return self.kind.example(self.trunk, batch)

    def layout(self) -> Layout:
        """The tokens of the images that the model is made for."""
        height, width = self.kind.grid(self.trunk, self.example()) or (0, 0)
        tokens = self.prefix + height * width
        return Layout(tokens, self.prefix, (height, width), self.depth)


def find(model: nn.Module) -> Found:
    """The one trunk in `model`, or the reason why there is none that can be folded."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"{type(model).__name__} is not a torch.nn.Module: give a model")
    _refuse_wrappers(model)
    trunks = [(m, kind) for m in model.modules() if (kind := trunk_kind(type(m)))]
    if not trunks:
        raise UnsupportedModel(f"{full_name(type(model))} cannot be folded: {reason(type(model))}")
    if len(trunks) > 1:
        names = ", ".join(full_name(type(trunk)) for trunk, _ in trunks)
        raise UnsupportedModel(
            f"{full_name(type(model))} has {len(trunks)} foldable parts ({names}): fold one of them"
        )
    trunk, kind = trunks[0]
    blocks = tuple(trunk.get_submodule(kind.blocks))
    return Found(trunk, kind, blocks, tuple(_block_kind(trunk, block) for block in blocks))


def trunk_kind(cls: type) -> Trunk | None:
    """The entry for a class or the nearest of its bases."""
    return next((TRUNKS[name] for c in cls.__mro__ if (name := full_name(c)) in TRUNKS), None)


def _block_kind(trunk: nn.Module, block: nn.Module) -> Kind:
    name = full_name(type(block))
    if name not in KINDS:
        raise UnsupportedModel(f"{full_name(type(trunk))} has blocks of an unknown kind: {name}")
    return KINDS[name]


def _refuse_wrappers(model: nn.Module) -> None:
    for module in model.modules():
        for cls in type(module).__mro__:
            if cls.__name__ in WRAPPERS:
                wrapper = WRAPPERS[cls.__name__]
                raise UnsupportedModel(f"the model is wrapped in {wrapper}: fold before wrapping")


_WINDOWS = "its attention is confined to windows or regions"
_PYRAMID = "it is a pyramid that changes its tokens between stages"
_CONVOLUTION = "it has no sequence of tokens with global attention"
_TEXT = "it reads text, not images"


def reason(cls: type) -> str:
    """Why a class of models cannot be folded."""
    return REASONS.get(cls.__module__.rsplit(".", 1)[-1], f"no family describes {cls.__name__}")


REASONS: dict[str, str] = {}
