"""Decide for each operation whether what it made that is not finite was made here, carried on, or meant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steadygrad.graph.walk import op as node_op
from steadygrad.locating.calls import Input, Part
from steadygrad.locating.derivative import singular
from steadygrad.locating.explain import SOFTMAXES, explain, samples_in_words
from steadygrad.locating.frames import (
    NOWHERE,
    Site,
    current_site,
    forward_node,
    in_loss_function,
    in_optimizer,
    site_inside_backward,
    site_of_node,
)
from steadygrad.locating.growth import Growth
from steadygrad.locating.modules import ModuleStack
from steadygrad.locating.ops import (
    ACCUMULATING,
    CARRIERS,
    CREATORS,
    KEEP_MASKS,
    LOSSES,
    node_name,
    nonfinite_number,
)
from steadygrad.locating.taint import Candidate, Kind, Origins
from steadygrad.locating.values import (
    first_value,
    is_mask,
    is_zero_one,
    not_finite,
    sample_hit,
    storage_key,
    tensors_in,
)
from steadygrad.records import FirstNonFinite

UNSEEN = (
    "{} came out of code that cannot be seen inside (torch.compile, C++); TORCH_COMPILE_DISABLE=1 opens it"
)


class Judge:
    """Keeps the candidates of the steps under watch.

    Args:
        modules: which module is being run.
        growth: what has grown.
        step, batch: the numbers of the first step and the first batch.
    """

    def __init__(self, modules: ModuleStack, growth: Growth, step: int, batch: int) -> None:
        self.modules, self.growth = modules, growth
        self.step, self.batch = step, batch
        self.origins = Origins()
        self.candidates: list[Candidate] = []
        self.module_of_node: dict[int, Any] = {}  # sequence number of a forward node -> module

    def origin(self, part: Part, node: Any) -> Candidate | None:
        """Who is behind what a part of a call has made that is not finite; None: it only carries on what it got.

        Args:
            part: with an output that is not finite.
            node: the autograd node that is being run, None in a forward pass or in the optimizer.
        """
        bad = [x for x in part.inputs if x.bad]
        if not bad:
            return self._made_here(part, node)
        known = [self.origins.of(x.tensor) for x in bad]
        makers = [c for c in known if c is not None and c is not Origins.MEANT]
        if makers:
            return min(makers, key=lambda c: c.order)
        strangers = [x for x, c in zip(bad, known, strict=True) if c is None]
        strangers = [x for x in strangers if not is_mask(x.values)]
        if not strangers:
            return self._from_meant(part, node, bad)
        if part.op in CARRIERS or part.op in CREATORS:
            return None
        return self._from_outside(part, node, strangers[0])

    def acquit(self, part: Part) -> None:
        """A part of a call is finite. Its memory may have belonged to something that was not."""
        used = {storage_key(t) for t in tensors_in(part.arguments)}
        for tensor, _ in part.outputs:
            whole = tensor.layout is not torch.strided or (
                tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()
            )
            if whole or storage_key(tensor) not in used:  # a finite slice says nothing of the rest
                self.origins.set(tensor, None)

    def unseen(self, root: Tensor) -> Candidate:
        """A loss is not finite, and no operation under watch has made it so."""
        node = root.grad_fn
        return Candidate(
            order=len(self.candidates),
            kind="loss",
            module=None,
            op="" if node is None else node_name(node_op(node)),
            site=NOWHERE if node is None else site_of_node(node),
            step=self.step,
            batch=self.batch,
            sample=None,
            value=first_value(root),
            detail=UNSEEN.format(first_value(root)),
            models_begun=self.modules.models_begun,
        )

    def verdict(self, origin: Candidate) -> FirstNonFinite:
        """The producer for people, once it is known that it has done harm."""
        origin = self._first_overflow(origin)
        later = self.modules.models_begun > origin.models_begun
        return FirstNonFinite(
            step=origin.step,
            kind="forward" if origin.kind == "loss" and later else origin.kind,
            module=self.modules.path_of(origin.module),
            op=origin.op,
            file=origin.site.shown(),
            line=origin.site.line,
            batch=origin.batch,
            sample=origin.sample,
            value=origin.value,
            detail=origin.detail,
            growth=origin.growth,
        )

    def _first_overflow(self, origin: Candidate) -> Candidate:
        """The first overflow of a sum of products in the same pass, if the origin is an overflow too.

        A ReLU may have hidden the first one (-inf becomes 0), but the numbers had left the range there.
        """
        if "overflows" not in origin.detail:
            return origin
        for c in self.candidates[: origin.order]:
            if (c.batch, c.kind == "backward") == (origin.batch, origin.kind == "backward"):
                if c.op in ACCUMULATING and "overflows" in c.detail:
                    return c
        return origin

    # ------------------------------------------------------------------ the cases
    def _made_here(self, part: Part, node: Any) -> Candidate:
        if part.op in CREATORS:
            return Origins.MEANT
        first = part.inputs[0] if part.inputs else None
        if part.op == "log" and first and not first.tensor.requires_grad and is_zero_one(first.values):
            return Origins.MEANT  # a mask of zeros and ones becomes an additive one
        if nonfinite_number(part.arguments):
            if part.op in KEEP_MASKS and part.op not in ("mul", "div", "add", "sub"):
                return Origins.MEANT
            return self._new(part, node, "a Python number in it is not finite", kind="data")
        return self._new(part, node, self._why(part, node))

    def _from_meant(self, part: Part, node: Any, bad: list[Input]) -> Candidate:
        """Only infinities that were asked for went in: a mask does no harm as long as it stays one."""
        outputs = part.bad
        turned_nan = any(first_value(t) == "nan" for t in outputs)
        if part.op in CREATORS or (part.op in KEEP_MASKS and not turned_nan):
            return Origins.MEANT
        if part.op in CARRIERS or any(first_value(x.values) == "nan" for x in bad):
            return Origins.MEANT
        detail = self._why(part, node)
        if part.op not in SOFTMAXES:
            made = first_value(outputs[0])
            detail = f"an infinity that was put in on purpose (a mask) reaches {part.op}: it gives {made}"
        return self._new(part, node, detail)

    def _from_outside(self, part: Part, node: Any, stranger: Input) -> Candidate:
        """Something not finite came in that no operation under watch has made."""
        owner = self.modules.owner_of(stranger.tensor)
        hit = not_finite(self.modules.as_given(stranger.values))
        sample = sample_hit(hit)
        value = first_value(stranger.values)
        kind: Kind = "data"
        if owner is not None or (stranger.tensor.is_leaf and stranger.tensor.requires_grad):
            what, name = owner or ("parameter", "")
            kind = "optimizer" if what == "parameter" else "forward"
            detail = f"{what} {name}".strip() + f" held {value} before this step began"
            sample = None
        elif not torch.is_grad_enabled() and node is None and in_optimizer():
            kind = "optimizer"
            detail = f"{value} was in a gradient or in the optimizer's state before this step of it"
        elif stranger.tensor.requires_grad:
            kind = "forward"
            detail = UNSEEN.format(value)
        else:
            detail = f"{value} was in the data that came in" + samples_in_words(hit)
        found = self._new(part, node, detail, kind=kind, value=value, sample=sample)
        self.origins.set(stranger.tensor, found)
        return found

    # ------------------------------------------------------------------ a candidate
    def _why(self, part: Part, node: Any) -> str:
        if node is not None:
            forward = forward_node(node)
            try:
                point = singular(forward) or (singular(node) if node is not forward else None)
            except RuntimeError:
                point = None  # the tensors of vmap have no values of their own
            if point is not None:
                return point[0]
        return explain(part.op.lstrip("_"), _arguments(part), part.bad)

    def _new(
        self,
        part: Part,
        node: Any,
        detail: str,
        *,
        kind: Kind | None = None,
        value: Any = None,
        sample: int | None = None,
    ) -> Candidate:
        output = part.bad[0]
        place, site, module, op = self._place(part, node)
        if kind is None and node is None:
            sample = sample_hit(not_finite(output))
        candidate = Candidate(
            order=len(self.candidates),
            kind=kind or place,
            module=module,
            op=op,
            site=site,
            step=self.step,
            batch=self.batch,
            sample=sample,
            value=value or first_value(output),
            detail=detail,
            models_begun=self.modules.models_begun,
        )
        large = self.growth.largest
        if "overflow" in detail and (large.op, large.site, large.module) != (part.op, site, module):
            candidate.growth = self.growth.sentence(self.modules.path_of(large.module))
        self.candidates.append(candidate)
        return candidate

    def _place(self, part: Part, node: Any) -> tuple[Kind, Site, Any, str]:
        shown = part.op.lstrip("_")
        if node is not None:
            inside = site_inside_backward()
            forward = forward_node(node)
            module = self.module_of_node.get(forward._sequence_nr())
            name = forward.name()
            if "Backward" not in name or not name[:1].isupper() or not name[-1:].isdigit():
                return "backward", inside if inside.path else site_of_node(node), module, shown
            site = inside if inside.path else site_of_node(node)
            return "backward", site, module, shown if inside.path else node_name(node_op(forward))
        site, module = current_site() or NOWHERE, self.modules.current
        if not torch.is_grad_enabled() and in_optimizer():
            return "optimizer", site, None, shown
        if any(isinstance(t, Tensor) and t.is_leaf and t.requires_grad for t, _ in part.outputs):
            return "optimizer", site, None, shown  # an update written by hand
        outside = module is None and self.modules.finished_model
        if outside or self.modules.in_loss or part.op in LOSSES or in_loss_function():
            return "loss", site, module, shown
        return "forward", site, module, shown


def _arguments(part: Part) -> list[Any]:
    """The arguments of a part with tensors as they were before the call."""
    kept = {id(x.tensor): x.values for x in part.inputs}
    return [kept.get(id(a), a) if isinstance(a, Tensor) else a for a in _flat(part.arguments)]


def _flat(arguments: Any) -> list[Any]:
    return [item for a in arguments for item in (_flat(a) if isinstance(a, (list, tuple)) else [a])]
