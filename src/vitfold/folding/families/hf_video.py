"""What the families of Hugging Face's video models share: clips `[B, T, C, H, W]`, of which
tubelets become tokens on a grid of time, height and width."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.own import adding
from vitfold.folding.blocks.proxy import Proxy, Whole, WholeHeir, whole
from vitfold.folding.families.biasless import of_part
from vitfold.folding.families.common import Arguments, Grid, Size, blank_images, filling, pair
from vitfold.folding.families.hf import HFFamily
from vitfold.folding.run import Run
from vitfold.tokens.state import TokenState


class HFVideoFamily(HFFamily):
    """Base of the families of transformers' video models.

    norm: where a trunk keeps the norm after its last block.
    """

    hands_down: ClassVar[bool] = False
    norm: ClassVar[str] = "layernorm"

    # The trunk

    @property
    def frames(self) -> int:
        """How many frames a clip has."""
        return int(self.config.num_frames)

    @property
    def tubelet(self) -> Sequence[int]:
        """How many frames, rows and columns of pixels become a token."""
        return (self.config.tubelet_size, *pair(self.config.patch_size))

    @property
    def size(self) -> Size:
        return (int(self.config.num_channels), *pair(self.config.image_size))

    def grid(self, arguments: Arguments) -> Grid:
        clips = arguments.get(self.arguments[0])
        if clips is None:
            return None
        sides = (clips.shape[1], *clips.shape[-2:])
        # Where a clip is shorter than a tubelet, each of its frames is repeated as often.
        return tuple(n // step or n for n, step in zip(sides, self.tubelet, strict=True))

    def pixels(self, arguments: Arguments) -> Tensor | None:
        clips, grid = arguments.get(self.arguments[0]), self.grid(arguments)
        if clips is None or grid is None:
            return None
        time, height, width = self.tubelet
        if clips.shape[1] < time:
            clips = clips.repeat(1, time, 1, 1, 1)
        rows, columns = clips.shape[-2] // height, clips.shape[-1] // width
        clips = clips[:, : clips.shape[1] // time * time, :, : rows * height, : columns * width]
        cut = clips.unflatten(4, (columns, width)).unflatten(3, (rows, height))
        cut = cut.unflatten(1, (-1, time))  # [B, t, time, C, rows, height, columns, width]
        return cut.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4).flatten(1, 3)

    def example(self, batch: int = 1) -> dict[str, Any]:
        return {self.arguments[0]: blank_images(self.trunk, (self.frames, *self.size), batch)}

    # A call

    def read_again(self, outputs: Any, state: TokenState) -> Any:
        return outputs  # the norm showed survivors in place of what was dropped

    def proxy(self, run: Run, **overrides: Any) -> Whole:
        parts: dict[str, Any] = {self.path: self.chain(run)}
        owner, _, name = self.norm.rpartition(".")
        norm = getattr(self.trunk.get_submodule(owner), name)
        if norm is not None:
            parts[self.norm] = filling(run, norm)
        # What records hidden states goes by a class; a graph follows none that is computed.
        kind = WholeHeir if run.shape == "dense" else whole
        return _proxied(self.trunk, parts | overrides, kind)


class HFBiasless(HFVideoFamily):
    """Base of those whose attention takes no mask: sizes are added where it calls torch's."""

    def biased(self, attention: Any, x: Tensor, attend: Attend) -> dict[str, Tensor]:
        """The bias by which merged tokens count as often as their sizes, where there is one, as an
        argument of the forward of `overrides`."""
        bias = self.bias(attention, x, attend)
        return {} if bias is None else {"bias": bias}

    def overrides(self, attention: Any, attend: Attend, x: Tensor) -> Mapping[str, Any]:
        if not attend.biased("attention_mask"):
            return {}
        return {"forward": _forward} | dict(self.fused(attention))

    def capture(
        self, attention: Any, cue: str, show: Callable[[Tensor], None]
    ) -> Mapping[str, Any]:
        return of_part(attention, cue, show, attention.attention_head_size)


def _forward(attention: Proxy, x: Tensor, bias: Tensor, **arguments: Any) -> Any:
    """The forward of a module that takes no bias, with one."""
    with adding(bias):
        return type(attention._module).forward(attention, x, **arguments)


def _proxied(module: Any, parts: Mapping[str, Any], kind: Callable[..., Whole] = whole) -> Whole:
    """A proxy of a module with overrides by their paths in it."""
    own = {path: part for path, part in parts.items() if "." not in path}
    inner: dict[str, dict[str, Any]] = {}
    for path in parts.keys() - own.keys():
        name, _, rest = path.partition(".")
        inner.setdefault(name, {})[rest] = parts[path]
    proxies = {name: _proxied(getattr(module, name), within) for name, within in inner.items()}
    return kind(module, **own, **proxies)
