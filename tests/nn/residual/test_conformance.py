"""Every connection keeps the same contract: one suite over the table in connections.py."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from tests.nn.residual.connections import CONNECTIONS

every = pytest.mark.parametrize("case", CONNECTIONS, ids=lambda c: c.name)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_is_its_equation(case, dtype):
    module, inputs = case.module(dtype=dtype), case.inputs(dtype=dtype)
    out = module(*inputs)
    assert out.dtype == dtype and out.shape == (case.out or case.shapes[0])
    wanted = case.twin(module, *(x.double().numpy() for x in inputs))
    bound = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.1}[dtype]
    np.testing.assert_allclose(out.detach().double().numpy(), wanted, rtol=bound, atol=bound)


@every
def test_passes_a_gradient_to_inputs_and_parameters(case):
    module, inputs = case.module(dtype=torch.float64).train(), case.inputs(dtype=torch.float64)
    for x in inputs:
        x.requires_grad_()
    module(*inputs).square().sum().backward()
    for tensor in (*inputs, *module.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and (tensor.grad != 0).any()


@every
def test_copies_and_reloads_bit_for_bit(case):
    module, inputs = case.module(), case.inputs()
    wanted = module(*inputs)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    reloaded = case.module(seed=5)
    assert not torch.equal(reloaded(*inputs), wanted)
    reloaded.load_state_dict(torch.load(file))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), reloaded):
        assert torch.equal(other(*inputs), wanted)


@every
def test_empty_batch_gives_an_empty_one(case):
    shape = case.out or case.shapes[0]
    assert case.module()(*case.inputs(batch=0)).shape == (0, *shape[1:])


@every
def test_zero_input_stays_finite(case):
    zeros = [torch.zeros_like(x, requires_grad=True) for x in case.inputs()]
    module = case.module()
    out = module(*zeros)
    out.square().sum().backward()
    assert out.isfinite().all() and all(x.grad.isfinite().all() for x in zeros)


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_input_stays_visible_in_its_example_only(case, bad):
    module, inputs = case.module(), case.inputs()
    wanted = module(*inputs)
    for x in inputs:
        x[1].view(-1)[2] = bad
    out = module(*inputs)
    assert not out[1].isfinite().all()
    keep = torch.arange(len(out)) != 1
    torch.testing.assert_close(out[keep], wanted[keep])


@every
def test_runs_under_autocast(case):
    module, inputs = case.module(), case.inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(*inputs)
    torch.testing.assert_close(out.float(), module(*inputs), rtol=0.1, atol=0.1)


@every
def test_compiles_whole(case):
    torch.compiler.reset()
    module, inputs = case.module(), case.inputs()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), module(*inputs))


@every
def test_is_made_on_the_meta_device(case):
    with torch.device("meta"):
        assert all(p.is_meta for p in case.make().parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own, inside inductor
def test_compiles_with_inductor():
    case = next(c for c in CONNECTIONS if c.name == "hyper_dynamic")
    module, inputs = case.module(), case.inputs()
    torch.testing.assert_close(torch.compile(module)(*inputs), module(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "case", [c for c in CONNECTIONS if "Gate" in c.name or "hyper" in c.name], ids=lambda c: c.name
)
def test_reset_parameters_puts_the_start_back(case):
    fresh, module = case.make(), case.module()
    module.reset_parameters()
    drawn = {n for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    for name, parameter in module.named_parameters():
        owner = name.rpartition(".")[0]
        if owner not in drawn and "norm" not in name:
            assert torch.equal(parameter, fresh.get_parameter(name)), name
