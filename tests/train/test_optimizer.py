"""Optimizer steps, plain and sharpness-aware."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitfold.train.optimizer import PlainStep, SharpnessAwareStep


def quadratic() -> tuple[nn.Linear, Callable[[], Tensor]]:
    torch.manual_seed(1)
    model, x, y = nn.Linear(4, 3).double(), torch.randn(8, 4).double(), torch.randn(8, 3).double()

    def backward() -> Tensor:
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss.detach()

    return model, backward


def test_a_sharpness_aware_step_is_the_gradient_uphill_taken_from_here() -> None:
    model, backward = quadratic()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = backward()
    slopes = {name: p.grad.clone() for name, p in model.named_parameters()}
    length = torch.sqrt(sum((g**2).sum() for g in slopes.values()))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(0.05 * slopes[name] / length)
    model.zero_grad()
    backward()
    expected = {name: start[name] - 0.1 * p.grad for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(start[name])
    model.zero_grad()
    step = SharpnessAwareStep(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
    assert step(backward, lambda: None) == first
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-6, atol=1e-9)


def test_a_radius_of_almost_nothing_is_a_plain_step() -> None:
    ends = []
    for make in (PlainStep, lambda o: SharpnessAwareStep(o, rho=1e-12)):
        model, backward = quadratic()
        step = make(torch.optim.AdamW(model.parameters(), lr=0.1))
        for _ in range(3):
            step(backward, lambda: None)
        ends.append(model.weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-9)


def test_an_overflow_in_the_first_gradient_leaves_the_weights_alone() -> None:
    model, backward = quadratic()
    before = model.weight.detach().clone()

    class Scaled(torch.optim.SGD):
        """Leaves out steps that are not finite, as a scaler does."""

        def step(self) -> None:  # type: ignore[override]
            if all(p.grad.isfinite().all() for g in self.param_groups for p in g["params"]):
                super().step()

    def overflow() -> Tensor:
        loss = backward()
        model.weight.grad[0, 0] = float("inf")
        return loss

    SharpnessAwareStep(Scaled(model.parameters(), lr=0.1), rho=0.05)(overflow, lambda: None)
    assert torch.equal(model.weight, before)
