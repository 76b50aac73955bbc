"""What in the graph of a loss is almost never meant: a softmax too many, a target out of reach, a lost parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from steadygrad.graph._head import shape_of, signed
from steadygrad.graph._values import bounded, made_by
from steadygrad.graph.loss import FOREIGN, SeenTerm
from steadygrad.graph.targets import BINARY
from steadygrad.graph.walk import Graph, op, saved
from steadygrad.records import Oddity

OUT_OF_RANGE = 0.05  # share of targets that a bounded output may miss: outliers, rounding
ENOUGH = 16  # equal targets in one batch that are no chance
LABEL = 1.0  # constants up to this size are labels of real and fake, penalties at 0 or 1
MAX_NAMES = 3

Check = Callable[[SeenTerm, str], Oddity | None]


def find_oddities(
    graph: Graph,
    roots: Sequence[Tensor],
    terms: Sequence[SeenTerm],
    parameters: Mapping[Tensor, str] | None = None,
    others: Iterable[Tensor] = (),
) -> tuple[Oddity, ...]:
    """Everything odd about one step's loss, in no order of weight.

    Args:
        graph: of all roots that lead to this step of the optimizer.
        roots: what ``backward`` was called on.
        terms: of :func:`read_loss`, read from that graph.
        parameters: the tensors of the optimizer and their names; None: nothing is said about parameters.
        others: the tensors of other optimizers, which this loss may reach and need not train.
    """
    found = []
    for at, seen in enumerate(terms):
        where = "loss" if len(terms) == 1 else f"loss term {at} ({seen.term.kind})"
        found += [oddity for check in CHECKS if (oddity := check(seen, where)) is not None]
    if parameters is not None:
        found += _lost_parameters(graph, roots, parameters, list(others))
    return tuple(found)


def softmax_before_cross_entropy(seen: SeenTerm, where: str) -> Oddity | None:
    """The logits of a cross entropy are probabilities already: its loss cannot fall far."""
    term = seen.term
    if term.kind != "cross_entropy" or term.output not in ("Softmax", "Sigmoid") or term.classes < 2:
        return None
    floor = math.log1p((term.classes - 1) / math.e)
    name = term.output.lower()
    return Oddity(
        f"{name}_before_cross_entropy",
        where,
        f"cross entropy over {term.classes} classes is given the output of a {name}, so it cannot fall below "
        f"{floor:.3g}: give it the logits",
        {"classes": term.classes, "floor": floor, "value": term.value},
    )


def one_unit_softmax(seen: SeenTerm, where: str) -> Oddity | None:
    """A softmax over one unit is 1 whatever the unit says."""
    maker = made_by(seen.maker)
    alone = seen.term.classes == 1 and seen.term.kind == "cross_entropy"
    if not alone and maker is not None and op(maker) in ("Softmax", "LogSoftmax"):
        shape = shape_of(maker)
        alone = bool(shape) and shape[signed(saved(maker, "dim")) % len(shape)] == 1
    if not alone:
        return None
    return Oddity(
        "one_unit_softmax",
        where,
        f"a softmax over 1 unit gives the same for each of {seen.term.elements} elements and has no gradient: use a "
        "sigmoid and a binary cross entropy, or two units",
        {"units": 1.0, "elements": seen.term.elements},
    )


def sigmoid_before_bce_logits(seen: SeenTerm, where: str) -> Oddity | None:
    """A binary cross entropy with logits is given probabilities."""
    if seen.term.kind != "bce_logits" or seen.term.output not in ("Sigmoid", "Softmax"):
        return None
    name = seen.term.output.lower()
    return Oddity(
        "sigmoid_before_bce_logits",
        where,
        f"binary_cross_entropy_with_logits is given the output of a {name}, so that no target of 0 can get less than "
        f"{math.log(2):.3g}: leave out the {name}",
        {"value": seen.term.value, "elements": seen.term.elements},
    )


def nll_without_log_softmax(seen: SeenTerm, where: str) -> Oddity | None:
    """A negative log likelihood of values that are no log-probabilities falls without bound."""
    if seen.term.kind != FOREIGN:
        return None
    given = (
        f"the output of a {seen.term.output.lower()}" if seen.term.output else "values that do not sum to 1"
    )
    return Oddity(
        "nll_without_log_softmax",
        where,
        f"nll_loss over {seen.term.classes} classes is given {given} where it needs log-probabilities: use "
        "cross_entropy on the logits",
        {"classes": seen.term.classes, "value": seen.term.value},
    )


def broadcast_in_loss(seen: SeenTerm, where: str) -> Oddity | None:
    """Each prediction is compared with each target."""
    size = seen.paired
    if not size:
        return None
    return Oddity(
        "broadcast_in_loss",
        where,
        f"prediction and target of {size} values were broadcast to {size} x {size}, so that each prediction is "
        "compared with every target: give them the same shape (squeeze or unsqueeze one)",
        {"size": size, "elements": seen.term.elements},
    )


def bounded_output(seen: SeenTerm, where: str) -> Oddity | None:
    """Targets lie where the last function of the model cannot get."""
    term = seen.term
    if not term.out_of_range > OUT_OF_RANGE:
        return None
    low, high = bounded(seen.maker)[1]
    return Oddity(
        "bounded_output",
        where,
        f"{term.out_of_range:.0%} of the targets (mean {term.target_mean:.3g}, rms {term.target_rms:.3g}) are out of "
        f"reach of the {term.output.lower()} that makes the prediction, [{low:.3g}, {high:.3g}]: leave it out or "
        "rescale the targets",
        {"out_of_range": term.out_of_range, "low": low, "high": high, "target_mean": term.target_mean},
    )


def constant_target(seen: SeenTerm, where: str) -> Oddity | None:
    """All targets of the batch are equal.

    Stays silent on what is meant: constants of size up to 1 (real and fake, penalties), class 0 (the positive of a
    contrastive loss), and on batches of few samples, whatever the number of their pixels or steps.
    """
    value, term = seen.constant, seen.term
    if value is None or not seen.shape or seen.shape[0] < ENOUGH or term.kind in BINARY:
        return None
    if term.classes == 1 or (value == 0 if term.classes else abs(value) <= LABEL):
        return None
    what = f"are class {value:.0f}" if term.classes else f"have the value {value:.4g}"
    return Oddity(
        "constant_target",
        where,
        f"all {term.elements} targets of the batch {what}, so there is nothing to tell apart: shuffle the data, check "
        "the labels",
        {"value": value, "elements": term.elements},
    )


def loss_sum(seen: SeenTerm, where: str) -> Oddity | None:
    """The loss, and with it the gradient, grows with the size of the batch."""
    term = seen.term
    if term.reduction != "sum" or not term.weight > 1:
        return None
    return Oddity(
        "loss_sum",
        where,
        f"the loss is a sum over {term.elements} elements, {term.weight:.4g} times their mean, and so is the gradient: "
        "take the mean, or lower the learning rate by that factor",
        {"elements": term.elements, "repeats": term.repeats, "weight": term.weight},
    )


CHECKS: tuple[Check, ...] = (
    softmax_before_cross_entropy,
    one_unit_softmax,
    sigmoid_before_bce_logits,
    nll_without_log_softmax,
    broadcast_in_loss,
    bounded_output,
    constant_target,
    loss_sum,
)


def _lost_parameters(
    graph: Graph, roots: Sequence[Tensor], parameters: Mapping[Tensor, str], others: Sequence[Tensor]
) -> list[Oddity]:
    """Parameters that the loss does not reach, and such that it reaches and nobody trains."""
    hidden = graph.truncated or any("Checkpoint" in node.name() for node in graph.nodes)
    trained = {id(tensor): name for tensor, name in parameters.items() if tensor.requires_grad}
    reached = {id(tensor) for tensor in graph.leaves.values()}
    reached |= {id(root) for root in roots if root.grad_fn is None and root.requires_grad}
    if hidden or not trained:
        return []
    unused = [name for key, name in trained.items() if key not in reached]
    evidence = {"count": float(len(unused)), "share": len(unused) / len(trained)}
    found = []
    if len(unused) == len(trained):
        message = (
            f"the graph of the loss holds none of the {len(trained)} parameters of the optimizer: look for detach(), "
            ".data, no_grad, a new tensor made of a loss, or an optimizer of another model"
        )
        found.append(Oddity("detached", _names(unused), message, evidence))
    elif unused:
        message = (
            f"{len(unused)} of {len(trained)} parameters of the optimizer ({_names(unused)}) have no part in the loss: "
            "look for detach() or no_grad on the way, or take them out of the optimizer"
        )
        found.append(Oddity("unused_parameters", _names(unused), message, evidence))
    known = {id(tensor) for tensor in (*parameters, *others)}
    untrained = [t for t in graph.leaves.values() if isinstance(t, nn.Parameter) and id(t) not in known]
    if untrained:
        shapes = _names([f"{tuple(t.shape)}" for t in untrained])
        message = (
            f"{len(untrained)} parameters get a gradient and are in no optimizer (shapes {shapes}): give them to the "
            "optimizer, or set requires_grad to False"
        )
        share = len(untrained) / (len(untrained) + len(reached & set(trained)))
        evidence = {"count": float(len(untrained)), "share": share}
        found.append(Oddity("untrained_parameters", shapes, message, evidence))
    return found


def _names(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
