"""The Transformer builders: torch's own layers as twins, masks, memory, what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steadygrad.init import deepnorm_constants, initialise
from steadygrad.nn.models import Attention, transformer_decoder, transformer_encoder

D = 8


def to_torch(ours: Attention) -> nn.MultiheadAttention:
    """torch's attention with our weights, packed."""
    theirs = nn.MultiheadAttention(D, 2, batch_first=True)
    copy_attention(ours, theirs)
    return theirs


def copy_attention(ours, theirs):
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())


def copy_feed_forward(ours, theirs):
    theirs.linear1.load_state_dict(ours.fn[0].state_dict())
    theirs.linear2.load_state_dict(ours.fn[2].state_dict())


def norm_of(residual):
    return (residual.post_norm if residual.norm is None else residual.norm).state_dict()


def test_attention_is_torchs():
    ours = Attention(D, 2)
    theirs, x, memory = to_torch(ours), torch.randn(3, 5, D), torch.randn(3, 4, D)
    padding = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]]).bool()
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])
    torch.testing.assert_close(ours(x, memory), theirs(x, memory, memory)[0])
    torch.testing.assert_close(
        ours(x, memory, key_padding_mask=padding), theirs(x, memory, memory, key_padding_mask=padding)[0]
    )


def test_causal_attention_is_torchs():
    ours = Attention(D, 2, causal=True)
    theirs, x = to_torch(ours), torch.randn(3, 4, D)
    future = torch.ones(4, 4).triu(1).bool()
    padding = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]]).bool()
    torch.testing.assert_close(ours(x), theirs(x, x, x, attn_mask=future)[0])
    torch.testing.assert_close(
        ours(x, key_padding_mask=padding), theirs(x, x, x, attn_mask=future, key_padding_mask=padding)[0]
    )


def test_attention_with_every_key_left_out_is_the_bias():
    ours = Attention(D, 2)
    out = ours(torch.randn(2, 3, D), key_padding_mask=torch.tensor([[False] * 3, [True] * 3]))
    torch.testing.assert_close(out[1], ours.out_proj.bias.expand(3, D))


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_encoder_layer_is_torchs(placement):
    ours = transformer_encoder(
        num_classes=None, depth=1, d_model=D, num_heads=2, in_features=3, placement=placement
    ).layers[0]
    theirs = nn.TransformerEncoderLayer(
        D, 2, 4 * D, 0.0, "gelu", batch_first=True, norm_first=placement == "pre"
    )
    copy_attention(ours.attention.fn, theirs.self_attn)
    copy_feed_forward(ours.feed_forward, theirs)
    theirs.norm1.load_state_dict(norm_of(ours.attention))
    theirs.norm2.load_state_dict(norm_of(ours.feed_forward))
    x = torch.randn(3, 5, D)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_decoder_layer_is_torchs(placement):
    ours = transformer_decoder(
        depth=1,
        d_model=D,
        num_heads=2,
        vocab_size=9,
        cross_attention=True,
        placement=placement,
        activation=nn.ReLU,
    ).layers[0]
    theirs = nn.TransformerDecoderLayer(
        D, 2, 4 * D, 0.0, "relu", batch_first=True, norm_first=placement == "pre"
    )
    copy_attention(ours.attention.fn, theirs.self_attn)
    copy_attention(ours.cross_attention.fn, theirs.multihead_attn)
    copy_feed_forward(ours.feed_forward, theirs)
    for norm, residual in zip(
        (theirs.norm1, theirs.norm2, theirs.norm3),
        (ours.attention, ours.cross_attention, ours.feed_forward),
        strict=True,
    ):
        norm.load_state_dict(norm_of(residual))
    x, memory = torch.randn(3, 4, D), torch.randn(3, 6, D)
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = True
    future = torch.ones(4, 4).triu(1).bool()
    torch.testing.assert_close(
        ours(x, memory, memory_key_padding_mask=padding),
        theirs(x, memory, tgt_mask=future, memory_key_padding_mask=padding),
    )


def test_sub_norm_stands_before_the_last_projections():
    layer = transformer_encoder(
        num_classes=None, depth=1, d_model=D, num_heads=2, in_features=3, sub_norm=nn.RMSNorm, dropout=0.1
    ).layers[0]
    kinds = [type(m) for m in layer.feed_forward.fn]
    assert kinds == [nn.Linear, nn.GELU, nn.RMSNorm, nn.Dropout, nn.Linear]
    attention = layer.attention.fn.eval()
    seen = []
    attention.out_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    attention(100 * torch.randn(3, 5, D))
    torch.testing.assert_close(seen[0].square().mean(-1), torch.ones(3, 5))


def test_decoder_sees_no_future():
    net = transformer_decoder(depth=3, d_model=D, num_heads=2, vocab_size=9)
    tokens = torch.randint(0, 9, (2, 6))
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 9
    before, after = net(tokens), net(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", None])
def test_padding_changes_nothing(placement):
    """A sequence alone, and padded with other tokens that are masked: one answer."""
    net = transformer_encoder(
        num_classes=4, depth=2, d_model=D, num_heads=2, vocab_size=9, placement=placement
    )
    tokens = torch.randint(0, 9, (2, 5))
    padded = torch.cat([tokens, torch.randint(0, 9, (2, 3))], 1)
    mask = torch.arange(8).expand(2, 8) >= 5
    torch.testing.assert_close(net(padded, key_padding_mask=mask), net(tokens))


def test_encoder_feeds_decoder():
    encoder = transformer_encoder(num_classes=None, depth=2, d_model=D, num_heads=2, in_features=3)
    decoder = transformer_decoder(depth=2, d_model=D, num_heads=2, vocab_size=9, cross_attention=True)
    source, target = torch.randn(2, 6, 3, requires_grad=True), torch.randint(0, 9, (2, 4))
    decoder(target, encoder(source)).square().mean().backward()
    assert source.grad.abs().max() > 0


def test_tied_weights_are_one_parameter():
    net = transformer_decoder(depth=1, d_model=D, num_heads=2, vocab_size=9, tie_weights=True)
    assert net.head.weight is net.embedding.weight
    free = transformer_decoder(depth=1, d_model=D, num_heads=2, vocab_size=9)
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in net.parameters()) == 9 * D


def test_drop_path_rises_over_the_layers():
    net = transformer_encoder(num_classes=2, depth=4, d_model=D, num_heads=2, in_features=3, drop_path=0.4)
    assert [layer.attention.drop_path.p for layer in net.layers] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [layer.feed_forward.drop_path.p for layer in net.layers] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_deepnorm_holds_the_gradient_of_a_deep_post_norm_net_down():
    """60 layers: under DeepNorm the branches' gradients are small, and alike over the depth."""

    def branch_grads(skip_scale, scheme):
        torch.manual_seed(0)
        options = {"depth": 60, "d_model": 16, "num_heads": 2, "in_features": 4, "num_classes": 4}
        net = transformer_encoder(placement="post", skip_scale=skip_scale, **options)
        x, y = torch.randn(16, 6, 4), torch.randint(0, 4, (16,))
        initialise(net, x, scheme=scheme)
        nn.functional.cross_entropy(net(x), y).backward()
        return [layer.feed_forward.fn[2].weight.grad.norm().item() for layer in net.layers]

    deepnorm = branch_grads(deepnorm_constants(60, 0).encoder.alpha, "deepnorm")
    plain = branch_grads(1.0, "xavier_normal")
    assert max(deepnorm) < 0.1 * min(plain)
    assert 0.5 < deepnorm[0] / deepnorm[-1] < 2.0


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("give one of in_features", {}),
        ("give one of in_features", {"in_features": 2, "vocab_size": 3}),
        ("d_model must be a multiple of num_heads, got 8 and 3", {"in_features": 2, "num_heads": 3}),
        ("num_classes must be at least 1, got 0", {"in_features": 2, "num_classes": 0}),
        ("max_len must be at least 1", {"in_features": 2, "max_len": 0}),
        ("vocab_size must be at least 1", {"vocab_size": 0}),
        ("dropout must be between 0 and 1, got 2", {"in_features": 2, "dropout": 2}),
    ],
)
def test_encoder_refuses(words, options):
    with pytest.raises(ValueError, match=words):
        transformer_encoder(**{"num_classes": 2, "depth": 1, "d_model": D, "num_heads": 2} | options)


def test_nets_refuse_what_they_cannot_run_on():
    net = transformer_decoder(depth=1, d_model=D, num_heads=2, in_features=3, max_len=4)
    crossing = transformer_decoder(depth=1, d_model=D, num_heads=2, in_features=3, cross_attention=True)
    x = torch.randn(2, 4, 3)
    with pytest.raises(ValueError, match="the input has 5 positions, the net 4: build it with max_len=5"):
        net(torch.randn(2, 5, 3))
    with pytest.raises(ValueError, match="build it with cross_attention=True"):
        net(x, torch.randn(2, 4, D))
    with pytest.raises(ValueError, match="call it as decoder"):
        crossing(x)
    with pytest.raises(
        TypeError, match="key_padding_mask must be bool, True at keys to leave out, got torch.float32"
    ):
        net(x, key_padding_mask=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="tie_weights needs tokens"):
        transformer_decoder(depth=1, d_model=D, num_heads=2, in_features=3, tie_weights=True)
