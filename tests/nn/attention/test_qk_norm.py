"""QK-norm: what is preserved, its parameters, its limits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.nn.attention import l2_normalise, layer_normalise, max_attention_logit, qk_norm, rms_normalise
from tests.nn.attention.attentions import HEADS, WIDTH, Fused, Prescaled, Written, inputs
from tests.nn.attention.test_following import net, wrapped


class OfEqualLength(Fused):
    """Queries and keys of a head are all equally long, each head with a length of its own."""

    def mix(self, q, k, v, allowed, bias):
        lengths = torch.tensor([0.3, 5.0]).view(2, 1, 1)
        return super().mix(
            lengths * F.normalize(q, dim=-1), 2 / lengths * F.normalize(k, dim=-1), v, None, None
        )


@pytest.mark.parametrize("normalise", [rms_normalise, l2_normalise])
def test_nothing_changes_where_all_vectors_of_a_head_are_equally_long(normalise):
    model = OfEqualLength()
    before = model(inputs())
    qk_norm(model, example_input=inputs(), normalise=normalise)
    torch.testing.assert_close(model(inputs()), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalise", [rms_normalise, layer_normalise, l2_normalise, nn.RMSNorm(4)])
def test_the_mean_square_logit_stays_and_growth_of_the_weights_does_not_matter(normalise):
    model = Written()
    nn.init.normal_(model.q_proj.weight)
    with max_attention_logit(model) as before:
        model(inputs())
    qk_norm(model, example_input=inputs(), normalise=normalise)
    with max_attention_logit(model) as during:
        model(inputs())
    assert bool((during[""] < 2 * before[""].abs() + 1).all())
    with torch.no_grad():
        model.q_proj.weight.mul_(1e3)
        model.q_proj.bias.mul_(1e3)
    with max_attention_logit(model) as grown:
        model(inputs())
    torch.testing.assert_close(grown[""], during[""], rtol=1e-3, atol=1e-3)


def test_parameters_are_those_of_the_model_and_train():
    model = net(Fused, Written)
    handle = qk_norm(model, example_input=inputs())
    mine = list(handle.parameters())
    assert len(mine) == 4 and all(any(p is q for q in model.parameters()) for p in mine)
    assert {n for n, _ in handle.named_parameters()} <= set(model.state_dict())
    optimizer = torch.optim.SGD(mine, lr=0.5)
    start = [p.clone() for p in mine]
    model(inputs())[:, 0].sum().backward()
    optimizer.step()
    assert all(p.grad is not None and not torch.equal(p, s) for p, s in zip(mine, start, strict=True))

    other = net(Fused, Written)
    qk_norm(other, example_input=3 * inputs())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(inputs()), model(inputs()))


def test_without_an_example_the_first_pass_makes_the_scales_and_says_so():
    model = net(Fused, Written)
    handle = qk_norm(model)
    with pytest.raises(RuntimeError, match="run one forward pass first"):
        list(handle.parameters())
    with pytest.warns(UserWarning, match="an optimizer made earlier does not train them"):
        first = model(inputs())
    assert torch.equal(model(inputs()), first)
    eager = net(Fused, Written)
    qk_norm(eager, example_input=inputs())
    assert torch.equal(eager(inputs()), first)

    fixed = net(Fused, Written)
    handle = qk_norm(fixed, learned=False)
    assert torch.equal(fixed(inputs()), first)
    assert not any(p.requires_grad for p in handle.parameters())


def test_one_number_for_each_head_keeps_rotations():
    """With rotary embeddings logits depend on distances only; scales by head leave that, others do not."""

    class Rotated(Fused):
        def mix(self, q, k, v, allowed, bias):
            at = torch.arange(q.size(-2)).unsqueeze(-1) * torch.tensor([1.0, 0.1])
            turn = torch.polar(torch.ones_like(at), at)
            q, k = (
                torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2))) * turn).flatten(-2)
                for t in (q, k)
            )
            return super().mix(q, k, v, None, None)

    handle = qk_norm(Rotated(), example_input=inputs(), per_dim=False)
    assert [tuple(p.shape) for p in handle.parameters()] == [(HEADS, 1)] * 2


def test_a_scale_in_front_of_the_product_is_kept_in_every_path():
    """The fused and the written path of one module use one scale, though one of them scales queries first."""

    class Both(Prescaled):
        fused = True

        def mix(self, q, k, v, allowed, bias):
            return F.scaled_dot_product_attention(q, k, v) if self.fused else super().mix(q, k, v, None, None)

    for first in (True, False):
        model = Both()
        model.fused = first
        qk_norm(model, example_input=inputs())
        outputs = []
        for model.fused in (True, False):
            outputs.append(model(inputs()))
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_multihead_uses_one_scale_with_and_without_weights():
    model = nn.MultiheadAttention(WIDTH, HEADS)
    x = inputs()
    qk_norm(model, example_input=(x, x, x))
    torch.testing.assert_close(model(x, x, x)[0], model(x, x, x, need_weights=False)[0], rtol=1e-4, atol=1e-5)


def test_scales_of_a_batch_without_size_start_at_one():
    model = Fused()
    nn.init.zeros_(model.q_proj.weight)
    nn.init.zeros_(model.q_proj.bias)
    handle = qk_norm(model, example_input=torch.full((1, 2, WIDTH), float("inf")))
    assert all(bool((p == 1).all()) for p in handle.parameters())
    handle.remove()
    query, key = qk_norm(model, example_input=inputs()).parameters()
    assert bool((query == 1).all()) and not bool((key == 1).all())


def test_nan_shows():
    model = Fused()
    qk_norm(model, example_input=inputs())
    x = inputs()
    x[0, 1, 2] = float("nan")
    out = model(x)
    assert out[0].isnan().any() and out[1].isfinite().all()


def test_dtype_and_device_of_the_scales_follow_the_module():
    model = Fused().bfloat16()
    handle = qk_norm(model, example_input=inputs(torch.bfloat16))
    assert all(p.dtype == torch.bfloat16 for p in handle.parameters())
    model = Fused()
    with torch.autocast("cpu", torch.bfloat16):
        handle = qk_norm(model, example_input=inputs())
    assert all(p.dtype == torch.float32 for p in handle.parameters())
    assert all(p.is_leaf and not p.is_inference() for p in handle.parameters())


def test_scales_made_in_inference_mode_can_be_trained():
    model = Fused()
    qk_norm(model, learned=True)
    with torch.inference_mode(), pytest.warns(UserWarning, match="made scales"):
        model(inputs())
    model(inputs()).sum().backward()
    assert model.qk_norm_query_scale.grad is not None


def test_attention_of_changing_shape_is_refused():
    class Changing(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    model = Changing()
    qk_norm(model, learned=False)
    model(torch.randn(1, 2, 3, 4))
    with pytest.raises(ValueError, match="is for 2 heads of 4 dimensions"):
        model(torch.randn(1, 3, 3, 4))


def test_an_example_that_fails_leaves_nothing():
    model = net(Fused)
    with pytest.raises(RuntimeError):
        qk_norm(model, example_input=torch.randn(2, 3))
    assert wrapped(model) == []
    assert not any("qk_norm" in n for n, _ in model.named_parameters())
