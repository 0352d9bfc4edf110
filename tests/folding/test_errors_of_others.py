"""What other libraries say is put in words of ours; what a user's own code says is not."""

import threading
from typing import Any

import pytest
import torch
from support.models import images, registered
from torch import Tensor, nn

import vitfold
from vitfold.errors import ShapeError, UnsupportedModel
from vitfold.folding.fold import clone


def vit() -> Any:
    return vitfold.fold(registered("vit_tiny_patch16_224", depth=3), vitfold.ToMe(r=4))


def fail(*_: Any) -> None:
    raise ValueError("mine")


def shape(*_: Any) -> None:
    torch.zeros(2) + torch.zeros(3)


@pytest.mark.parametrize("where", ["", "blocks.1", "blocks.1.attn", "patch_embed"])
def test_an_error_of_a_hook_comes_through_as_it_is(where: str) -> None:
    for before in (False, True):
        for hook, output in ((fail, "mine"), (shape, "size of tensor")):
            model = vit()
            module = model.get_submodule(where)
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            register(hook)
            with pytest.raises((ValueError, RuntimeError), match=output) as error:
                model(images(model))
            assert not isinstance(error.value, ShapeError)


def test_so_does_one_of_a_module() -> None:
    class Mine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("mine")

    model = vit()
    model.norm = Mine()
    with pytest.raises(AssertionError, match=r"^mine$"):
        model(images(model))


def test_images_of_another_size_are_still_explained() -> None:
    model = vit()
    with pytest.raises(ShapeError, match="which takes 3x80x80: resize them"):
        model(images(model)[..., :64])


def test_hooks_on_all_modules_see_attention() -> None:
    model, visits = vit(), list[Any]()
    hook = lambda module, *_: visits.append(module.__class__.__name__)  # noqa: E731
    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        model(images(model))
    finally:
        handle.remove()
    assert visits.count("Attention") == 3


def test_what_cannot_be_copied_is_said() -> None:
    model = vit()
    model.lock = threading.Lock()
    with pytest.raises(UnsupportedModel, match=r"a VisionTransformer cannot be copied: .*lock"):
        clone(model)
    del model.lock
    assert vitfold.folded(clone(model)) is None
