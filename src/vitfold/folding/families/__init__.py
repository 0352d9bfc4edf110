"""Which models can be folded: how a trunk is found in a model, and what is refused."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from vitfold.errors import UnsupportedModel
from vitfold.folding.blocks.kinds import ATTENTIONS, KINDS, BlockKind
from vitfold.folding.blocks.names import full_name, maker
from vitfold.folding.families import hf, timm
from vitfold.folding.families.reasons import TEXT, reason
from vitfold.folding.families.table import Families, tabulate
from vitfold.folding.families.trunks import Size, TrunkKind
from vitfold.methods.plugins import FAMILIES_GROUP, load_plugins
from vitfold.tokens.layout import Layout

TRUNKS: dict[str, TrunkKind] = timm.TRUNKS | hf.TRUNKS

WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel",
    "DataParallel": "DataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "OptimizedModule": "torch.compile",
    "FSDPModule": "fully_shard",
}


@dataclass(frozen=True, eq=False)
class Found:
    """A trunk in a model, and what is known of its kind.

    hosted: whether what is around it reads patches, whatever it reads itself.
    """

    trunk: Any
    kind: TrunkKind
    blocks: tuple[nn.Module, ...]
    kinds: tuple[BlockKind, ...]
    hosted: bool = False

    @property
    def depth(self) -> int:
        """How many blocks the trunk has."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """How many channels its tokens have."""
        return self.kind.width(self.trunk)

    @property
    def prefix(self) -> int:
        """How many tokens of a sequence are not patches."""
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
        return self.layout_of(self.kind.grid(self.trunk, self.example()) or (0, 0))

    def layout_of(self, grid: tuple[int, ...] | None) -> Layout:
        """Those of images with that grid of patches."""
        tokens = self.prefix + math.prod(grid or (0,))
        class_token = self.kind.class_token(self.trunk)
        reads_patches = self.hosted or self.kind.reads_patches(self.trunk)
        return Layout(tokens, self.prefix, grid, self.depth, class_token, reads_patches)


def find(model: nn.Module) -> Found:
    """The one trunk in `model`, or the reason why there is none that can be folded."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"{type(model).__name__} is not a torch.nn.Module: give a model")
    _refuse_wrappers(model)
    trunks = _trunks(model)
    if not trunks and load_plugins(FAMILIES_GROUP):
        trunks = _trunks(model)
    if not trunks:
        raise UnsupportedModel(f"{full_name(type(model))} cannot be folded: {_why(model)}")
    if len(trunks) > 1:
        names = ", ".join(full_name(type(trunk)) for trunk, _ in trunks)
        raise UnsupportedModel(
            f"{full_name(type(model))} has {len(trunks)} foldable parts ({names}): fold one of them"
        )
    trunk, kind = trunks[0]
    blocks = _blocks(trunk, kind)
    kinds = tuple(_block_kind(trunk, block) for block in blocks)
    return Found(trunk, kind, blocks, kinds, any(map(_reads_patches, model.modules())))


def _trunks(model: nn.Module) -> list[tuple[nn.Module, TrunkKind]]:
    """The parts of a model that a family describes."""
    return [(m, kind) for m in model.modules() if (kind := trunk_kind(type(m)))]


def trunk_kind(cls: type) -> TrunkKind | None:
    """The entry for a class or the nearest of its bases."""
    return next((TRUNKS[name] for c in cls.__mro__ if (name := full_name(c)) in TRUNKS), None)


def _blocks(trunk: nn.Module, kind: TrunkKind) -> tuple[nn.Module, ...]:
    container: Any = trunk.get_submodule(kind.blocks)
    blocks = tuple(container.children())
    if len(blocks) != len(container):
        raise UnsupportedModel(
            f"{full_name(type(trunk))} cannot be folded: it has {len(container)} blocks, of which "
            f"{len(container) - len(blocks)} occur more than once"
        )
    return blocks


def _reads_patches(module: nn.Module) -> bool:
    """Of a trunk's host, which may say so itself."""
    return type(module).__name__ in hf.READERS or getattr(module, "reads_patches", False) is True


def families() -> Families:
    """What can be folded with the libraries that are installed here; what is refused, and why."""
    load_plugins(FAMILIES_GROUP)
    return tabulate(lambda cls: trunk_kind(cls) is not None)


def _block_kind(trunk: nn.Module, block: nn.Module) -> BlockKind:
    kind = KINDS.get(maker(type(block)))
    if kind is None:
        raise UnsupportedModel(
            f"{full_name(type(trunk))} cannot be folded: its blocks are of an unknown kind, "
            f"{full_name(type(block))}"
        )
    for attention in kind.attentions(block):
        if maker(type(attention)) not in ATTENTIONS:
            raise UnsupportedModel(
                f"{full_name(type(trunk))} cannot be folded: its blocks attend in an unknown way, "
                f"{full_name(type(attention))}"
            )
        if "forward" in vars(attention) and attention is not block:
            raise UnsupportedModel(
                f"the forward of a {type(attention).__name__} is replaced, by offloading hooks "
                "perhaps: fold before that"
            )
    return kind


def _why(model: nn.Module) -> str:
    """The reason for a model, or for the first of its parts that has one."""
    if why := reason(type(model)):
        return why
    for module in model.modules():
        why = reason(type(module))
        if why and why != TEXT:  # that a part reads text says nothing of the others
            return f"of its {full_name(type(module))}, {why}"
    return f"no family describes {type(model).__name__}, nor any part of it"


def _refuse_wrappers(model: nn.Module) -> None:
    for module in model.modules():
        for cls in type(module).__mro__:
            if cls.__name__ in WRAPPERS:
                wrapper, remedy = WRAPPERS[cls.__name__], "fold before wrapping"
                if wrapper == "DataParallel":  # its copies would run the model they come from
                    remedy = "use DistributedDataParallel, and fold before wrapping"
                raise UnsupportedModel(f"the model is wrapped in {wrapper}: {remedy}")
