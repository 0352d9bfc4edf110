"""Host: one adapter class for a kind of vision-language model, around a tower that is folded."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitfold.errors import FoldError, MethodError
from vitfold.folding.blocks.proxy import whole
from vitfold.folding.calls import MARK, Fold, watch
from vitfold.folding.families.base import Types
from vitfold.folding.hosts.cut import Cut, selected, survivors
from vitfold.folding.run import Run

Arguments = Mapping[str, Any]


class Host:
    """Everything that `out="reduced"` must know of a model that reads images through a tower: where
    visual tokens reach the projector, how many patches are one of them, where they stand in a
    prompt. One instance describes one model.

    The defaults fit a model of transformers that takes `mm_encoder_outputs`, and whose projector
    sees tokens one by one.

    models: the classes that own tower, projector and language model.
    heads: the classes around those, which hand all they take on to them.
    projector: the name of what maps visual tokens to what the language model reads.
    images: the argument that holds images.
    refused: arguments that cannot be taken, and what to do instead.
    """

    models: ClassVar[Types] = ()
    heads: ClassVar[Types] = ()
    projector: ClassVar[str] = "multi_modal_projector"
    images: ClassVar[str] = "pixel_values"
    refused: ClassVar[Mapping[str, str]] = {}

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def config(self) -> Any:
        """The configuration of the model."""
        return self.model.config

    @property
    def side(self) -> int:
        """Patches along the side of the squares that become one visual token."""
        return 1

    @property
    def placeholder(self) -> int:
        """The token of a prompt that stands for a visual one."""
        return int(self.config.image_token_id)

    def check(self) -> None:
        """Refuse a model whose configuration this does not fit."""

    def layer(self, arguments: Arguments, depth: int) -> int:
        """After how many blocks visual tokens are read."""
        return depth

    def prefix(self, arguments: Arguments) -> bool:
        """Whether tokens that are no patches are visual ones too."""
        return False

    def overrides(self, cut: Cut) -> dict[str, Any]:
        """What of the model lets the projector see those visual tokens that stay."""
        return {self.projector: cut.around(getattr(self.model, self.projector))}

    def positions(self, arguments: Arguments) -> Tensor | None:
        """`[3, B, L]`: the positions of a whole prompt where they are not its places; else None."""
        return None

    def remember(self, positions: Tensor, length: Tensor) -> None:
        """Let the model know where positions `[3, B, n]` end, of which so many `[B]` count."""

    # A call

    @property
    def record(self) -> Fold | None:
        """The fold on the tower; None where there is none."""
        modules = (m for m in self.model.modules() if MARK in m.__dict__)
        return next((module.__dict__[MARK] for module in modules), None)

    def encode(self, arguments: Arguments) -> tuple[Any, list[Tensor]]:
        """What the model makes of images, their visual tokens that stay in `pooler_output`; and for
        each image which of its visual tokens do, `[S]`."""
        function = type(self.model).get_image_features
        names = inspect.signature(function).parameters
        images = {name: arguments[name] for name in names if arguments.get(name) is not None}
        with watch() as runs:
            cut = Cut(lambda: self.stays(runs, images))
            proxy = whole(self.model, **self.overrides(cut))
            outputs = function(proxy, **images, return_dict=True)
        stays = cut.stays
        outputs.pooler_output = selected(outputs.pooler_output, stays)
        layers = getattr(outputs, "deepstack_features", None)
        if layers is not None:
            outputs.deepstack_features = [selected(layer, stays) for layer in layers]
        return outputs, stays

    def stays(self, runs: Sequence[Run], arguments: Arguments) -> list[Tensor]:
        """For each image, which of its visual tokens stay, `[S]`."""
        if not runs:
            raise FoldError(
                f"{type(self.model).__name__} did not run its tower as it is: with out='reduced', "
                "compile the whole model or its language_model, not the tower"
            )
        run = runs[-1]
        if run.valid is not None:
            raise MethodError(
                "padded images cannot be handed out reduced: give images of one size in one call, "
                "or fold with out='restored'"
            )
        state = run.states[self.layer(arguments, run.depth)]
        return survivors(state, run.order, self.side**2, self.prefix(arguments))

    def placeholders(self, arguments: Arguments) -> Tensor:
        """`[B, L]`: where visual tokens stand in a prompt."""
        ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
        if ids is not None:
            return ids == self.placeholder  # type: ignore[no-any-return]
        token = torch.tensor(self.placeholder, device=embeds.device)  # type: ignore[union-attr]
        return (embeds == self.model.get_input_embeddings()(token)).all(dim=-1)  # type: ignore[no-any-return]
