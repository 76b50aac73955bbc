"""torch's own recurrent and Transformer layers, made residual and norm-first."""

from __future__ import annotations

from torch import nn

from steadygrad.nn.residual import ResidualRecurrence
from steadygrad.recipes.edits import LEAST, Edits, Places, fresh, named

RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)
LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
STACKS = (nn.TransformerEncoder, nn.TransformerDecoder)


def add_recurrent_residuals(edits: Edits, dropout: float | None) -> None:
    """Every RNN, LSTM and GRU of two layers and more becomes a `ResidualRecurrence`, in all its places."""
    places = Places(edits.model)
    for path, module in list(edits.model.named_modules()):
        if type(module) not in RECURRENT or module.num_layers < LEAST:  # type: ignore[operator]
            continue
        why = places.kept(module, shared=True)
        if path.endswith("_orig_mod"):
            why = "compiled"  # what torch.compile made would go on calling the old one
        if why is not None:
            edits.changes.append(f"{named(path)}: kept ({why})")
            continue
        new = ResidualRecurrence(module, dropout)  # type: ignore[arg-type]
        edits.replace(path, new, f"{module.num_layers} layers with norm and residual connection each")


def norm_first(edits: Edits) -> None:
    """torch's Transformer layers put their norms first, and a stack of such layers gets one at its end.

    Frozen layers stay: they were trained as they are.
    """
    changed = frozen = 0
    for module in edits.model.modules():
        if type(module) not in LAYERS or module.norm_first:
            continue
        if all(p.requires_grad for p in module.parameters()):
            edits.attribute(module, "norm_first", True)
            changed += 1
        else:
            frozen += 1
    if changed:
        edits.changes.append(f"{changed} Transformer layers put their norms first")
    if frozen:
        edits.changes.append(f"{frozen} Transformer layers kept (frozen)")
    for path, module in edits.model.named_modules():
        if type(module) not in STACKS or not len(module.layers):  # type: ignore[arg-type]
            continue
        first, last = module.layers[0], module.layers[-1]  # type: ignore[index]
        if getattr(first, "norm_first", False) and getattr(module, "use_nested_tensor", False):
            edits.attribute(module, "use_nested_tensor", False)  # as torch does when it builds such a stack
        if module.norm is None and type(last) in LAYERS and last.norm_first:
            norm = fresh(last.norm1)  # type: ignore[arg-type]
            edits.attribute(module, "norm", norm.train(module.training))
            edits.changes.append(f"{named(path)}: a norm at the end of the stack")
