"""timm's `NaFlexVit`: images of several shapes and lengths in one padded batch."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from vitfold.folding.blocks.kinds import BlockKind
from vitfold.folding.blocks.names import maker
from vitfold.folding.families import timm_eva, timm_vit
from vitfold.folding.families.common import Arguments, Grid, common_grid, with_prefix
from vitfold.folding.families.registry import register_family
from vitfold.folding.families.timm_eva import ROTARY, TimmEva
from vitfold.folding.families.timm_vit import MASKED, TimmVisionTransformer
from vitfold.folding.run import Run

NAFLEX = "timm.models.naflexvit.NaFlexVit"


@register_family
class TimmNaFlex(TimmVisionTransformer):
    """timm's NaFlex, whose blocks are those of its other vision transformers."""

    trunks: ClassVar[tuple[str, ...]] = (NAFLEX,)
    readers: ClassVar = frozenset({NAFLEX})
    arguments: ClassVar[tuple[str, ...]] = ("x", "patch_coord", "patch_valid")
    attention_types: ClassVar[tuple[str, ...]] = (
        *TimmVisionTransformer.attention_types,
        *TimmEva.attention_types,
    )

    @property
    def class_token(self) -> bool:
        return getattr(self.embed, "cls_token", None) is not None

    @property
    def embed(self) -> Any:
        return self.trunk.embeds

    def sides(self) -> Sequence[int]:
        if size := super().sides():
            return size
        embed = self.embed
        if not getattr(embed, "pos_embed_grid_size", None):
            return ()
        return [n * p for n, p in zip(embed.pos_embed_grid_size, embed.patch_size, strict=True)]

    def images(self, arguments: Arguments) -> Tensor | None:
        images = arguments.get("x", arguments.get("patches"))
        return images if isinstance(images, Tensor) and images.dim() == 4 else None

    def grid(self, arguments: Arguments) -> Grid:
        """Patches say where they come from; those that pad are at the start."""
        if self.images(arguments) is not None:
            return super().grid(arguments)
        places = _patches(arguments).get("patch_coord")
        if not isinstance(places, Tensor) or not places.shape[1]:
            return None
        return common_grid(places.amax(dim=1) + 1)

    def padding(self, arguments: Arguments) -> Tensor | None:
        valid = _patches(arguments).get("patch_valid")
        return None if valid is None else valid.bool()

    def trunk_overrides(self, run: Run) -> dict[str, Any]:
        overrides = super().trunk_overrides(run)
        if run.valid is not None and hasattr(self.trunk, "_forward_embeds"):
            overrides["_forward_embeds"] = functools.partial(self._embed_padded, run)
        return overrides

    def _embed_padded(self, run: Run, *args: Any, **kwargs: Any) -> Any:
        """Patch dropout leaves other patches than those that were given."""
        embeds = self.trunk._forward_embeds(*args, **kwargs)
        run.valid = with_prefix(embeds["patch_valid"].bool(), run.prefix)
        return embeds

    def kind(self, block: nn.Module) -> BlockKind | None:
        name = maker(type(block))
        if name in timm_eva.HALVES:
            return BlockKind(self, *timm_eva.HALVES[name], ROTARY)
        halves = timm_vit.HALVES.get(name)
        return BlockKind(self, *halves, MASKED) if halves else None

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        if hasattr(attention, "q_bias"):
            return timm_eva.capture_beside_bias(attention, cue, show)
        return super().capture(attention, cue, show)


def _patches(arguments: Arguments) -> Arguments:
    """What is said of patches that came by name, or in one piece."""
    inner = arguments.get("x")
    return inner if isinstance(inner, dict) else arguments
