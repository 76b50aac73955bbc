"""Every stabiliser on every way of writing attention: one suite over the table in attentions.py."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from steadygrad.nn.attention import QKClip, max_attention_logit, qk_norm, soft_cap
from tests.nn.attention import oracles
from tests.nn.attention.attentions import CASES, HEADS, MASKS, Case, around, inputs, masks, weights_of

CAP = 0.8


def over(cases=CASES):
    return pytest.mark.parametrize("case", cases, ids=lambda c: c.name)


over_masks = pytest.mark.parametrize("kind", MASKS)
STABILISERS = {
    "soft_cap": lambda m, *x, **options: soft_cap(m, *x, cap=CAP, **options),
    "qk_norm": qk_norm,
}
over_stabilisers = pytest.mark.parametrize("put", STABILISERS.values(), ids=list(STABILISERS))


def twin(module, kind, **options):
    """Output and largest logits of the slow twin in float64."""
    given = {k: v.double().numpy() if v.is_floating_point() else v.numpy() for k, v in masks(kind).items()}
    x = inputs().double().numpy()
    out, largest = oracles.attention(weights_of(module), x, HEADS, **given, **options)
    return around(module, x, out), largest


def scales_of(handle):
    query, key = (oracles.anything(p) for p in handle.parameters())
    return query, key


def close(got, want, tolerance=2e-5):
    np.testing.assert_allclose(oracles.anything(got), want, rtol=tolerance, atol=tolerance)


def attributes(model: nn.Module) -> dict[str, list[str]]:
    return {name: sorted(vars(m)) + sorted(m._parameters) for name, m in model.named_modules()}


@over_masks
@over()
def test_the_table_computes_one_function(case: Case, kind):
    module = case.make()
    if (case.name, kind) == ("encoder_layer_eval", "float"):
        pytest.skip(
            "torch's fast path takes a float mask for a bool one and gives nan: with a stabiliser it is off"
        )
    with torch.no_grad():
        close(module(inputs(), **masks(kind)), twin(module, kind)[0])


@over_masks
@over()
def test_signal_is_that_of_the_twin_and_changes_nothing(case: Case, kind):
    module = case.make()
    before = module(inputs(), **masks(kind))  # with gradients: no fast path, whose last bits differ
    with max_attention_logit(module) as seen:
        during = module(inputs(), **masks(kind))
    assert torch.equal(before, during)
    [largest] = seen.values()
    close(largest, twin(module, kind)[1])
    assert not largest.requires_grad and largest.dtype == torch.float32


@over_masks
@over()
def test_soft_cap_is_that_of_the_twin(case: Case, kind):
    module = case.make()
    soft_cap(module, cap=CAP)
    want, largest = twin(module, kind, cap=CAP)
    with torch.no_grad(), max_attention_logit(module) as seen:
        close(module(inputs(), **masks(kind)), want)
    close(next(iter(seen.values())), largest)  # the signal is that before the cap
    uncapped, _ = twin(module, kind)
    assert np.abs(want - uncapped).max() > 1e-2


@over_masks
@over()
def test_qk_norm_is_that_of_the_twin(case: Case, kind):
    module = case.make()
    handle = qk_norm(module, example_input=(inputs(),))
    for parameter in handle.parameters():
        parameter.data.mul_(torch.linspace(0.5, 2.0, parameter.numel()).view_as(parameter))
    want, largest = twin(module, kind, scales=scales_of(handle))
    with torch.no_grad(), max_attention_logit(module) as seen:
        close(module(inputs(), **masks(kind)), want)
    close(next(iter(seen.values())), largest)


@over_masks
@over()
def test_both_together_are_that_of_the_twin(case: Case, kind):
    module = case.make()
    soft_cap(module, cap=CAP)
    handle = qk_norm(module, example_input=(inputs(),))
    want, largest = twin(module, kind, cap=CAP, scales=scales_of(handle))
    with torch.no_grad(), max_attention_logit(module) as seen:
        close(module(inputs(), **masks(kind)), want)
    close(next(iter(seen.values())), largest)


@over()
def test_scales_start_at_the_size_that_queries_and_keys_had(case: Case):
    module = case.make()
    weights, x = weights_of(module), inputs().double().numpy()
    handle = qk_norm(module, example_input=inputs())
    for scale, w, b in zip(
        scales_of(handle), (weights.q, weights.k), (weights.q_bias, weights.k_bias), strict=True
    ):
        vectors = oracles.heads(x, w, b, HEADS)
        for h in range(HEADS):
            np.testing.assert_allclose(scale[h], np.sqrt(np.mean(vectors[:, h] ** 2)), rtol=1e-4)


@pytest.mark.parametrize("cap", [float("inf"), 1e6])
@over()
def test_a_cap_that_is_never_reached_changes_nothing(case: Case, cap):
    module = case.make()
    before = module(inputs(), **masks("bool"))
    soft_cap(module, cap=cap)
    after = module(inputs(), **masks("bool"))
    if cap == float("inf"):
        assert torch.equal(before, after)
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


@over_stabilisers
@over()
def test_gradients(case: Case, put):
    module = case.make(torch.float64)
    put(module, example_input=inputs(torch.float64))
    mask = masks("bool")
    x = inputs(torch.float64)[:1, :4].repeat(1, 2, 1)[:, :5].clone().requires_grad_()
    mask = {"allowed": mask["allowed"][:1]}
    assert torch.autograd.gradcheck(lambda x: module(x, **mask), x, fast_mode=True)


@over_stabilisers
@over()
def test_removal_restores_every_bit(case: Case, put):
    module = case.make()
    before, held, keys = module(inputs()), attributes(module), list(module.state_dict())
    handle = put(module, example_input=inputs())
    changed = module(inputs())
    assert not torch.equal(before, changed)
    handle.remove()
    assert torch.equal(before, module(inputs()))
    assert attributes(module) == held and list(module.state_dict()) == keys
    handle.remove()  # a second time: nothing


@over_stabilisers
@over()
def test_twice_is_refused(case: Case, put):
    module = case.make()
    handle = put(module)
    with pytest.raises(ValueError, match="in force on this model already"):
        put(module)
    handle.remove()
    put(module)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
@over_stabilisers
@over()
def test_copies_keep_it(case: Case, put, copied):
    module = case.make()
    plain = module(inputs())
    handle = put(module, example_input=inputs())
    other, its_handle = copied((module, handle))
    want = module(inputs())
    assert torch.equal(other(inputs()), want)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(module(inputs()), want), "the copy has parameters of its own"
    handle.remove()
    assert torch.equal(module(inputs()), plain)
    assert its_handle.sites and its_handle.sites == tuple(its_handle.edit.sites)
    its_handle.remove()
    assert attributes(other) == attributes(module)


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
@over_stabilisers
@over()
def test_half_precision(case: Case, put, how):
    module = case.make()
    put(module, example_input=inputs())
    want = module(inputs(), **masks("bool"))
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            got = module(inputs(), **masks("bool"))
    else:
        got = module.bfloat16()(inputs(torch.bfloat16), **masks("bool"))
    assert got.isfinite().all()
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.1)


@over()
def test_qk_clip(case: Case):
    """The hot head comes down to tau, the other one keeps every bit of its weights."""
    module = case.make().train()
    x = inputs()
    before = weights_of(module)
    _, largest = oracles.attention(before, x.double().numpy(), HEADS)
    hot = int(largest.argmax())
    tau = float(np.sort(largest).mean())
    clip = QKClip(module, tau=tau, example_input=x)
    module(x)
    [gamma] = clip.step().values()
    want = np.ones(HEADS)
    want[hot] = tau / largest[hot]
    close(gamma, want)
    after = weights_of(module)
    dim = before.q.shape[0] // HEADS
    for name in ("q", "k", "q_bias", "k_bias"):
        old, new = getattr(before, name), getattr(after, name)
        for h in range(HEADS):
            rows = slice(h * dim, (h + 1) * dim)
            if h == hot:
                np.testing.assert_allclose(new[rows], old[rows] * np.sqrt(want[h]), rtol=1e-5)
            else:
                assert np.array_equal(new[rows], old[rows])
    for name in ("v", "o", "v_bias", "o_bias"):
        assert np.array_equal(getattr(before, name), getattr(after, name))
    _, largest = oracles.attention(after, x.double().numpy(), HEADS)
    np.testing.assert_allclose(largest[hot], tau, rtol=1e-4)
    clip.remove()
    assert clip.sites
    assert "forward" not in vars(module)


def bits(module: nn.Module) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in module.state_dict().items()}


def none_to_attend_to(case: Case) -> list[torch.Tensor]:
    """No example; examples without a token, where the case takes them."""
    return [inputs()[:0], *([inputs()[:, :0]] if case.any_length else [])]


@over_stabilisers
@over()
def test_empty(case: Case, put):
    module = case.make()
    handle = put(module, inputs())
    want, held = module(inputs()), bits(module)
    for x in none_to_attend_to(case):
        y = module(x.requires_grad_())
        assert y.shape == x.shape
        y.sum().backward()
        assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
    assert torch.equal(module(inputs()), want) and bits(module) == held
    handle.remove()
    for x in none_to_attend_to(case):
        handle = put(module, x)
        for name, scale in module.named_parameters():
            assert "qk_norm" not in name or bool((scale == 1).all())
        assert module(inputs()).isfinite().all()
        handle.remove()


@over()
def test_empty_has_no_logit_and_clips_nothing(case: Case):
    module = case.make().train()
    clip = QKClip(module, inputs(), tau=1e-3)
    held = bits(module)
    for x in none_to_attend_to(case):
        with max_attention_logit(module) as seen:
            module(x)
        [largest] = seen.values()
        assert bool((largest == -torch.inf).all())
        [gamma] = clip.step().values()
        assert bool((gamma == 1).all()) and bits(module) == held


@over_stabilisers
@over()
def test_zero(case: Case, put):
    """Queries and keys of 0 have logits of 0: no stabiliser changes what comes out, nor makes a gradient nan."""
    module = case.make()
    put(module, inputs())
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "bias" in name:
                p.zero_()
    x = torch.zeros_like(inputs()).requires_grad_()
    y = module(x)
    assert torch.equal(y, torch.zeros_like(y))
    (y * torch.randn(y.shape)).sum().backward()
    grads = [x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
    assert len(grads) > 4 and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@over_stabilisers
@over()
def test_what_is_not_finite_shows_and_stays_in_its_example(case: Case, put, bad):
    module = case.make()
    put(module, inputs())
    held, want = bits(module), module(inputs())
    x = inputs()
    x[1, 2, 3] = bad
    with max_attention_logit(module) as seen:
        got = module(x)
    assert torch.equal(got[0], want[0]) and not got[1].isfinite().all()
    assert not next(iter(seen.values())).isfinite().all()
    assert bits(module) == held and torch.equal(module(inputs()), want)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@over()
def test_qk_clip_learns_nothing_from_what_is_not_finite(case: Case, bad):
    module = case.make().train()
    clip = QKClip(module, inputs(), tau=1e-3)
    held = bits(module)
    module(inputs() * bad)
    [gamma] = clip.step().values()
    assert bool((gamma == 1).all()) and bits(module) == held
    module(inputs())
    [gamma] = clip.step().values()
    assert bool((gamma < 1).all())


@over_stabilisers
@over()
def test_state_is_reloaded_bit_for_bit(case: Case, put):
    module, other = case.make(), case.make()
    put(module, inputs())
    put(other, 3 * inputs())
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.25)
    want = module(inputs())
    assert not torch.equal(other(inputs()), want)
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved))
    assert bits(other) == bits(module) and torch.equal(other(inputs()), want)
