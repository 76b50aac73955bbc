"""New parameters in a run whose optimizer is there already."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.repair.effects.effect import Models, NotApplicable


class AddedParameters:
    """Parameters that an effect gives to modules, trained by the optimizer that trains the module's own.

    They are appended to a parameter group that exists: a further group breaks the schedulers, which have counted the
    groups. Moments of the other parameters stay; for the new ones the optimizer makes its own at the next step.
    """

    def __init__(self) -> None:
        self._added: list[tuple[nn.Module, str, Tensor, Optimizer, dict[str, object]]] = []

    def register(self, models: Models, module: nn.Module, name: str, value: Tensor) -> nn.Parameter:
        """A new parameter of a module.

        Raises:
            NotApplicable: no optimizer trains this module, or none that takes just any tensor.
        """
        parameter = nn.Parameter(value)
        optimizer, group = _home(models, module)
        module.register_parameter(name, parameter)
        self._append(module, name, parameter, optimizer, group)
        return parameter

    def adopt(self, models: Models, module: nn.Module, name: str) -> None:
        """A parameter that the module has got from elsewhere. Nothing happens if it is trained already."""
        parameter = module._parameters[name]
        assert parameter is not None
        if any(p is parameter for o in models.optimizers for g in o.param_groups for p in g["params"]):
            return
        optimizer, group = _home(models, module)
        self._append(module, name, parameter, optimizer, group)

    def _append(
        self, module: nn.Module, name: str, parameter: Tensor, optimizer: Optimizer, group: dict[str, object]
    ) -> None:
        params = group["params"]
        assert isinstance(params, list)
        params.append(parameter)
        if isinstance(names := group.get("param_names"), list):
            names.append(name)
        self._added.append((module, name, parameter, optimizer, group))

    def remove(self) -> None:
        """Module and optimizer as they were before."""
        for module, name, parameter, optimizer, group in reversed(self._added):
            params = group["params"]
            assert isinstance(params, list)
            at = next((i for i, p in enumerate(params) if p is parameter), None)
            if at is not None:
                del params[at]
                if isinstance(names := group.get("param_names"), list):
                    del names[at]
            optimizer.state.pop(parameter, None)
            module._parameters.pop(name, None)
        self._added = []


def _home(models: Models, module: nn.Module) -> tuple[Optimizer, dict[str, object]]:
    """The first group of the optimizer that trains this module, or else one that lies in it or around it."""
    own = {id(p) for p in module.parameters()}
    for optimizer in models.optimizers:
        if any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            return optimizer, optimizer.param_groups[0]
    if len(models.optimizers) == 1 and not own:
        return models.optimizers[0], models.optimizers[0].param_groups[0]
    raise NotApplicable("no optimizer trains the module that needs a new parameter")
