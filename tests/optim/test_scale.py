"""The property that the room is for: no layer's step depends on the scale of its gradient."""

from __future__ import annotations

import math

import torch

from tests.optim.cases import (
    NUM_STEPS,
    OPTIMIZERS,
    Case,
    draw,
    give,
    over,
    parameters,
)


class Exploding(torch.nn.Module):
    """40 tanh layers with gain 5: the gradient grows on its way back, by a million in all."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(32, 32, bias=False) for _ in range(40))
        for i, layer in enumerate(self.layers):
            with torch.no_grad():
                layer.weight.copy_(draw(i, shapes=((32, 32),))[0] * 5 / 32**0.5)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def ratios_of(optimizer, model, num_steps) -> torch.Tensor:
    """||dw|| / ||w|| by step and layer."""
    rows = []
    for step in range(num_steps):
        optimizer.zero_grad()
        model(draw(step, shapes=((16, 32),))[0]).square().mean().backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        rows.append(
            [
                ((p.detach() - b).norm() / b.norm()).item()
                for p, b in zip(model.parameters(), before, strict=True)
            ]
        )
    return torch.tensor(rows)


def test_gradients_of_the_exploding_net_differ_by_a_million():
    model = Exploding()
    model(draw(0, shapes=((16, 32),))[0]).square().mean().backward()
    norms = torch.tensor([p.grad.norm() for p in model.parameters()])
    assert norms.max() / norms.min() > 1e6
    ratios = ratios_of(torch.optim.SGD(model.parameters(), lr=1e-6), model, 1)
    assert ratios.max() / ratios.min() > 1e6


@over([c for c in OPTIMIZERS if math.isfinite(c.bound)])
def test_update_ratio_of_every_layer_stays_within_the_bound(case: Case):
    model = Exploding()
    optimizer = case.make(model.parameters())
    ratios = ratios_of(optimizer, model, NUM_STEPS)
    assert (ratios <= case.bound).all(), ratios.amax(0)
    assert ratios[0].amin() > case.bound / 40, ratios.amin(0)  # and no layer stands still
    assert ratios[0].amax() / ratios[0].amin() < 1.5  # a million in the gradients


@over([c for c in OPTIMIZERS if math.isfinite(c.bound)])
def test_the_scale_of_a_layers_gradient_changes_no_step(case: Case):
    """The same gradients, those of one layer a million times those of another."""
    free = {"weight_decay": 0.0} if case.decay else {}  # LARS weighs its decay against the gradient
    plain, scaled = parameters(torch.float64), parameters(torch.float64)
    a, b = case.make(plain, **free), case.make(scaled, **free)
    for step in range(NUM_STEPS):
        grads = draw(100 + step, torch.float64)
        give(plain, grads)
        give(scaled, [s * g for s, g in zip((1e-3, 1e3, 1.0, 1e-2, 1e2), grads, strict=True)])
        a.step()
        b.step()
    for p, q in zip(plain, scaled, strict=True):
        # an epsilon of Adam's (LAMB 1e-6) is not nothing to a gradient of 1e-3
        torch.testing.assert_close(p, q, rtol=2e-3, atol=2e-4)
