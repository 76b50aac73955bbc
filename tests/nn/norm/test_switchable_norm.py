"""Switchable norm: the three statistics, and their mix."""

import torch

from steadygrad.nn import SwitchableNorm2d


def test_it_mixes_the_statistics_of_channel_example_and_batch():
    torch.manual_seed(0)
    norm = SwitchableNorm2d(3).double()
    with torch.no_grad():
        for p in norm.parameters():
            p.normal_()
    x = torch.randn(4, 3, 2, 5, dtype=torch.float64) * 2 + 1
    w, v = norm.mean_mix.softmax(0), norm.var_mix.softmax(0)
    got = norm(x)
    for n in range(4):
        for c in range(3):
            groups = (x[n, c], x[n], x[:, c])
            mean = sum(w[k] * g.mean() for k, g in enumerate(groups))
            var = sum(v[k] * g.var(correction=0) for k, g in enumerate(groups))
            want = (x[n, c] - mean) / (var + 1e-5).sqrt() * norm.weight[c] + norm.bias[c]
            torch.testing.assert_close(got[n, c], want)


def test_training_can_choose():
    """One of the three is what torch has."""
    x = torch.randn(4, 3, 5, 5)
    plain = (torch.nn.InstanceNorm2d(3), torch.nn.GroupNorm(1, 3), torch.nn.BatchNorm2d(3))
    for k, other in enumerate(plain):
        norm = SwitchableNorm2d(3)
        with torch.no_grad():
            for mix in (norm.mean_mix, norm.var_mix):
                mix.fill_(-100.0)[k] = 100.0
        torch.testing.assert_close(norm(x), other(x), rtol=1e-4, atol=1e-5)
