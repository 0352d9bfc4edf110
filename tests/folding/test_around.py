"""What people put around models, with the packages themselves: adapters, integers, replicas, graphs
of many batch sizes. Each works, before a fold and after it, or is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import hf, images, registered
from support.processes import one_process
from support.rest import rest
from torch import Tensor, nn

import vitfold
from vitfold.errors import MethodError

MODELS: dict[str, Callable[[], Any]] = {
    "timm": lambda: registered("vit_tiny_patch16_224", depth=3),
    "transformers": lambda: hf("ViTForImageClassification"),
}
LAYERS = {"timm": [f"blocks.{block}.attn.qkv" for block in range(3)], "transformers": ["q_proj"]}

each = pytest.mark.parametrize("library", MODELS)
orders = pytest.mark.parametrize("first", ["fold", "other"])


def answer(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return out if isinstance(out, Tensor) else out.logits


def both(model: nn.Module, first: str, other: Callable[[nn.Module], Any]) -> Any:
    """The model folded and put into something else, in this order."""
    if first == "fold":
        return other(vitfold.fold(model, "tome", r=4))
    return vitfold.fold(other(model), "tome", r=4)


def adapted(library: str) -> Callable[[nn.Module], Any]:
    """Puts PEFT's adapters in, with weights that matter."""
    peft = pytest.importorskip("peft")

    def adapt(model: nn.Module) -> Any:
        config = peft.LoraConfig(r=2, target_modules=LAYERS[library], init_lora_weights=False)
        torch.manual_seed(0)
        return peft.get_peft_model(model, config).eval()

    return adapt


@each
@orders
def test_adapters_are_trained_and_merged_under_a_fold(library: str, first: str) -> None:
    model = both(MODELS[library](), first, adapted(library))
    x = images(MODELS[library]())
    with torch.no_grad():
        out = answer(model, x)
        assert vitfold.trace(model, x).counts[-1][0] < vitfold.trace(model, x).counts[0][0]
        with model.disable_adapter():
            plain = answer(vitfold.fold(MODELS[library](), "tome", r=4), x)
            torch.testing.assert_close(answer(model, x), plain, rtol=0, atol=1e-5)
        assert not torch.allclose(out, plain, atol=1e-3)
    answer(model.train(), x).square().sum().backward()
    adapters = [w for name, w in model.named_parameters() if "lora_" in name]
    assert adapters
    assert all(w.grad is not None and w.grad.any() for w in adapters)
    merged = model.eval().merge_and_unload()
    assert vitfold.folded(merged) is not None
    with torch.no_grad():
        torch.testing.assert_close(answer(merged, x), out, rtol=0, atol=1e-5)
    assert merged.state_dict().keys() == MODELS[library]().state_dict().keys()


@each
@orders
@pytest.mark.parametrize("config", ["Int8WeightOnly", "Int8DynamicActivationInt8Weight"])
def test_integers_of_torchao_fold(library: str, first: str, config: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")

    def quantize(model: nn.Module) -> nn.Module:
        quantization.quantize_(model, getattr(quantization, f"{config}Config")())
        return model

    x = images(MODELS[library]())
    with torch.no_grad():
        dense = answer(quantize(MODELS[library]()), x)
        model = both(MODELS[library](), first, quantize)
        expected = answer(vitfold.fold(MODELS[library](), "tome", r=4), x)
        assert torch.nn.functional.cosine_similarity(answer(model, x), expected).min() > 0.98
        assert torch.equal(answer(vitfold.fold(model, "tome", r=0), x), dense)


def test_integers_that_are_not_counted_are_folded_by_number() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = MODELS["timm"]()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    plain = vitfold.folded(vitfold.fold(MODELS["timm"](), "tome", flops=0.8))
    assert vitfold.folded(vitfold.fold(model, "tome", flops=0.8)) == plain
    model = MODELS["timm"]()
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(MethodError, match=r"a quantized Linear is not counted: .* or give r"):
        vitfold.fold(model, "tome", flops=0.8)
    vitfold.fold(model, "tome", r=4)


@pytest.mark.parametrize("method", ["tome", "ltmp"])
def test_replicas_train(method: str, tmp_path: Path) -> None:
    from torch.nn.parallel import DistributedDataParallel

    model = vitfold.fold(MODELS["timm"](), method, flops=0.8).train()
    x = images(model)
    expected = model(x).detach()
    with one_process(tmp_path):
        wrapped = DistributedDataParallel(model, find_unused_parameters=method == "ltmp")
        torch.testing.assert_close(wrapped(x), expected)
        wrapped(x).square().sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.any()


@pytest.mark.parametrize("method", ["lgtm", *rest("tome", "ward")])
def test_batches_of_many_sizes_are_compiled_twice_at_most(method: str) -> None:
    model = vitfold.fold(MODELS["timm"](), method, r=4)
    graphs = 0

    def backend(graph: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = images(model, 7)
    with torch.no_grad():
        for size in (2, 3, 5, 7, 4):
            torch.testing.assert_close(compiled(x[:size]), model(x[:size]), rtol=0, atol=1e-5)
    assert graphs <= 3  # the first, and two more
