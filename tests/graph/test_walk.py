"""The graph of a loss: an order of execution whatever its form, and values read without side effects."""

import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from steadygrad.graph.walk import Graph, op, saved


def leaf(*shape):
    return torch.ones(shape or (3,), requires_grad=True)


def everything(*roots):
    """Slow twin: all nodes and all edges, found by recursion over plain lists."""
    nodes, edges = [], []

    def visit(node):
        if node in nodes:
            return
        nodes.append(node)
        for parent, number in node.next_functions:
            if parent is not None:
                edges.append((node, parent, number))
                visit(parent)

    for root in roots:
        if root.grad_fn is not None:
            visit(root.grad_fn)
    return nodes, edges


def check(graph, *roots):
    nodes, edges = everything(*roots)
    leaves = {n for n in nodes if n.name() == "torch::autograd::AccumulateGrad"}
    assert len(graph.nodes) == len(set(graph.nodes)) and set(graph.nodes) == set(nodes) - leaves
    assert {id(t) for t in graph.leaves.values()} == {id(n.variable) for n in leaves}
    place = {n: i for i, n in enumerate(graph.nodes)}
    assert all(graph.place(n) == place.get(n, -1) for n in nodes)
    for user, parent, number in edges:
        assert parent in leaves or place[parent] < place[user]
        assert graph.consumers(parent).count(user) == sum(e[:2] == (user, parent) for e in edges)
        assert graph.times_used(parent, number) == sum(e[1:] == (parent, number) for e in edges)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.booleans()), max_size=25))
def test_any_graph_is_in_an_order_of_execution(recipe):
    values = [leaf(), leaf(), torch.ones(3)]
    for a, b, split in recipe:
        x = values[a % len(values)]
        values += list(x.sin().split(1))[:1] if split else [x * values[b % len(values)]]
    roots = [v.sum() for v in values[-2:]]
    graph = Graph(roots)
    check(graph, *roots)
    assert not graph.truncated


def test_a_deep_chain_needs_no_recursion():
    x = leaf()
    for _ in range(6000):
        x = x + 1
    graph = Graph([x])
    assert len(graph.nodes) == 6000 and [graph.place(n) for n in graph.nodes] == list(range(6000))
    assert graph.nodes[-1] is x.grad_fn


def test_a_graph_through_a_backward_pass():
    w = leaf()
    y = (w.tanh() ** 3).sum()
    (g,) = torch.autograd.grad(y, w, create_graph=True)
    root = y + g.square().sum()
    check(Graph([root]), root)


def test_roots_without_history_add_nothing():
    w = leaf()
    assert Graph([]).nodes == Graph([torch.ones(1), w]).nodes == []
    both = (w * 2, w * 3)
    check(Graph([*both, torch.ones(2)]), *both)


def test_a_function_of_the_users_may_keep_what_it_calls_variable():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.variable = x
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    root = Double.apply(leaf() * 3)
    graph = Graph([root])
    assert [op(n) for n in graph.nodes] == ["Mul", "Double"] and len(graph.leaves) == 1
    assert saved(root.grad_fn, "self") is None


@pytest.mark.parametrize("most", [1, 2, 7, 50])
def test_what_is_cut_off_is_far_from_the_root(most):
    w = leaf()
    long, short = w, w.sin()
    for _ in range(100):
        long = long + 1
    root = long * short.cos()
    graph = Graph([root], max_nodes=most)
    assert graph.truncated and len(graph.nodes) + len(graph.leaves) == most
    names = [op(n) for n in graph.nodes]
    assert names[-1] == "Mul" and ("Cos" in names) == (most > 2) and ("Sin" in names) == (most >= 7)
    assert all(graph.place(p) < graph.place(n) for n in graph.nodes for p in graph.inputs(n))
    assert Graph([root], max_nodes=104).truncated is False and Graph([root], max_nodes=103).truncated


def test_shape_type_and_name():
    root = leaf(2, 3).half().t()
    graph = Graph([root])
    assert [(op(n), graph.shape(n), graph.dtype(n)) for n in graph.nodes] == [
        ("ToCopy", (2, 3), torch.float16),
        ("T", (3, 2), torch.float16),
    ]


def test_saved_values_are_read_as_they_are():
    w = leaf(2, 2)
    root = (w.exp() @ w).sum(dim=1)
    read = saved(root.grad_fn.next_functions[0][0], "self")
    assert torch.equal(read, w.detach().exp()) and not read.requires_grad
    assert saved(root.grad_fn, "dim") == (1,) or saved(root.grad_fn, "dim")[0] == 1
    assert saved(root.grad_fn, "nothing_like_it") is None


def test_hooks_of_others_are_never_run():
    unpacked = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: unpacked.append(1) or t):
        root = leaf().exp().exp()
    assert all(saved(n, "result") is None for n in Graph([root]).nodes) and not unpacked
    root.sum().backward()
    assert len(unpacked) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_nothing_is_recomputed(reentrant):
    runs = []

    def block(x):
        runs.append(1)
        return x.exp().sin()

    root = checkpoint(block, leaf() * 1, use_reentrant=reentrant).sum()
    for node in Graph([root]).nodes:
        for name in ("result", "self", "other"):
            saved(node, name)
    assert runs == [1]


def test_what_was_changed_or_freed_is_none():
    w = leaf()
    y = w * 1
    root = y.sin()
    y.add_(1)
    assert saved(root.grad_fn, "self") is None
    root = (w * 1).exp().sum()
    node = root.grad_fn.next_functions[0][0]
    assert saved(node, "result") is not None
    root.backward()
    assert saved(node, "result") is None


def test_it_goes_with_its_last_owner():
    w = leaf()
    y = (w * 2).exp()
    inner = weakref.ref(y)
    graph = Graph([y.sum()])
    del y
    gc.disable()
    try:
        del graph
        assert inner() is None
    finally:
        gc.enable()
