"""Hugging Face's trunks: they hand their keyword arguments down to every layer, and so the run of
a folded call too."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from vitfold.errors import UnsupportedModel
from vitfold.folding.blocks.attention import Attend
from vitfold.folding.blocks.proxy import Proxy
from vitfold.folding.blocks.proxy import call as call_module
from vitfold.folding.families import processor
from vitfold.folding.families.base import Family
from vitfold.folding.families.common import (
    Arguments,
    Grid,
    Size,
    blank_images,
    check_depth,
    check_ran,
    key_bias,
    pair,
)
from vitfold.folding.run import Run
from vitfold.tokens.state import TokenState

HF = "transformers.models."

BIASED = frozenset({"", "eager", "sdpa"})
"""Implementations of attention that add a bias to the logits."""

OPTIONAL = ("flash", "flex")
"""Parts of the names of implementations that take no bias, and serve where there is none."""


MODELS: dict[str, tuple[str, ...]] = {}
"""Trunks by their full names, and the classes that are one, or a trunk and a head."""

KNOWN: set[str] = set()
"""All those classes."""


class HFFamily(Family):
    """Base of the families of transformers' vision models.

    models: the classes of trunks, by their place in transformers, and for each the classes that are
        one, or a trunk and a head.
    readers: those among them that read patches, whatever their trunk does.
    hands_down: whether a trunk hands its keyword arguments down to every layer. Where it does not,
        it sees folded layers in place of its own.
    resizes: whether a trunk takes images of any size, so that what its image processor says of that
        goes before what its configuration does.
    """

    models: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    readers: ClassVar[frozenset[str]] = frozenset()
    hands_down: ClassVar[bool] = True
    resizes: ClassVar[bool] = False
    entries: ClassVar[tuple[str, ...]] = ("forward",)
    arguments: ClassVar[tuple[str, ...]] = ("pixel_values",)
    block_arguments: ClassVar[tuple[str, ...]] = ("attention_mask",)
    attention: ClassVar = "attention"

    def __init_subclass__(cls) -> None:
        cls.trunks = tuple(HF + place for place in cls.models)
        MODELS.update({HF + place: names for place, names in cls.models.items()})
        KNOWN.update(name for names in cls.models.values() for name in names)

    # The trunk

    @property
    def config(self) -> Any:
        """The configuration of the trunk."""
        return self.trunk.config

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    @property
    def prefix(self) -> int:
        return 1

    @property
    def class_token(self) -> bool:
        return self.prefix > 0

    @property
    def is_backbone(self) -> bool:
        """Whether the trunk returns the outputs of its layers, and nothing else."""
        return hasattr(self.trunk, "out_features")

    @property
    def reads_patches(self) -> bool:
        averages = getattr(self.config, "use_mean_pooling", False)
        return not self.class_token or averages or self.is_backbone

    @property
    def size(self) -> Size:
        channels = int(getattr(self.config, "num_channels", 3))
        options = processor.of(self.config) if self.resizes else None
        size = None if options is None else processor.input_size(options)
        patches = pair(self.config.patch_size)
        if size is None or any(side % patch for side, patch in zip(size, patches, strict=True)):
            size = pair(self.config.image_size)
        return channels, *size

    def grid(self, arguments: Arguments) -> Grid:
        images = arguments.get("pixel_values")
        if images is None:
            return None
        height, width = pair(self.config.patch_size)
        return images.shape[-2] // height, images.shape[-1] // width

    def example(self, batch: int = 1) -> dict[str, Any]:
        return {"pixel_values": blank_images(self.trunk, self.size, batch)}

    def padding(self, arguments: Arguments) -> Tensor | None:
        """The patches that a mask over all tokens leaves out."""
        mask = arguments.get("attention_mask")
        return None if mask is None or mask.dim() != 2 else mask[:, self.prefix :].bool()

    def read_by(self, hosts: Sequence[nn.Module]) -> bool:
        """A class of transformers with a head of its own reads what that says; any other may read
        the patches that a trunk hands out."""
        names = [{cls.__name__ for cls in type(host).__mro__} for host in hosts]
        if super().read_by(hosts) or any(own & self.readers for own in names):
            return True
        if any(own & KNOWN for own in names):
            return False
        return bool(hosts)

    def preprocessing(self) -> dict[str, Any]:
        options = processor.of(self.config)
        return processor.translated(options) if options else {}

    # A call

    def call(self, method: str, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._wants("output_attentions", kwargs):
            raise UnsupportedModel(
                "a folded model has no dense attention maps: call without output_attentions, "
                "or unfold it first"
            )
        shows = self.is_backbone or self._wants("output_hidden_states", kwargs)
        run.shape = "dense" if shows else "dense at the end"
        outputs = self.outputs(method, run, args, kwargs)
        if self.is_backbone or not run.last.drops:
            return outputs
        return self.read_again(outputs, run.last)

    def outputs(self, method: str, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a method of the trunk makes of folded layers."""
        trunk = self.trunk
        if not self.hands_down:
            if run.shape == "dense":
                _capture_states(trunk)
            return self.run(method, run, args, kwargs)
        check_depth(trunk, trunk.get_submodule(self.path), run)
        outputs = getattr(type(trunk), method)(trunk, *args, vitfold=run, **kwargs)
        check_ran(trunk, run)
        return outputs

    def read_again(self, outputs: Any, state: TokenState) -> Any:
        """Outputs in which dropped positions show the mean of normalized survivors, and attention
        pooling sees survivors alone."""
        kind, head = self.kinds[0], getattr(self.trunk, "head", None)
        survivors = state.fold(kind.ahead(outputs[0]))
        read = {"last_hidden_state": kind.behind(state.unfold(survivors))}
        if head is not None:
            read["pooler_output"] = self.pool(head, *state.level(survivors))
        if isinstance(outputs, tuple):
            return (*read.values(), *outputs[len(read) :])
        for name, tensor in read.items():
            outputs[name] = tensor
        return outputs

    def pool(self, head: Any, x: Tensor, state: TokenState) -> Tensor:
        """Attention pooling over tokens that count as often as their sizes, padding not at all."""
        bias = key_bias(x, state)

        def attention(probe: Tensor, keys: Tensor, values: Tensor, **_: Any) -> Any:
            mask = bias.repeat_interleave(head.attention.num_heads, dim=0).unsqueeze(1)
            return head.attention(probe, keys, values, attn_mask=mask)

        return call_module(head, {"attention": attention}, x)

    def _wants(self, option: str, kwargs: dict[str, Any]) -> bool:
        return bool(kwargs.get(option) or getattr(self.config, option, False))

    # Attention

    def bias(self, attention: Any, x: Tensor, attend: Attend) -> Tensor | None:
        """The bias that is added to logits; refused where the model's attention implementation
        takes none."""
        check_bias(attention, attend)
        return attend.bias(x, "attention_mask")

    def fused(self, attention: Any) -> Mapping[str, Any]:
        return {"config": Proxy(attention.config, _attn_implementation="sdpa")}


def check_bias(attention: Any, attend: Attend) -> None:
    """Refuse a bias where the implementation of attention that the model is set to takes none, or
    is not known to take one."""
    config = getattr(attention, "config", None)
    name = getattr(config, "_attn_implementation", None) or ""
    if name in BIASED or not attend.biased("attention_mask"):
        return
    takes = "takes no bias" if any(part in name for part in OPTIONAL) else "may take no bias"
    raise UnsupportedModel(
        f"{name} {takes}, by which merged tokens count as often as their sizes: load the "
        "model with attn_implementation='sdpa', or fold it with proportional=False"
    )


def _capture_states(trunk: Any) -> None:
    """What transformers does when hidden states are asked for the first time, done to the trunk
    and not to what stands for it."""
    from transformers.utils.output_capturing import maybe_install_capturing_hooks

    if getattr(trunk, "_can_record_outputs", None):
        maybe_install_capturing_hooks(trunk)
