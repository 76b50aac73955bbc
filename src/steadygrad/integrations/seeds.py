"""The random numbers of an arm: the same in all of them, or others where a cure is tried on another seed.

A generator that nobody seeds is seeded by us. With an offset k the seeds that the script sets itself are shifted: s
becomes s + 1000 k. What draws from a generator object of its own (``torch.Generator().manual_seed``,
``random.Random``, ``numpy.random.RandomState``), from the clock or from the system stays as it is.
"""

from __future__ import annotations

import functools
import operator
import random
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from steadygrad.integrations.afterimport import AfterImport

SEED = 0
STRIDE = 1000  # scripts are run with neighbouring seeds by hand: the shifted ones are others
FRESH = (0x80000000, 623)  # first word and position of a numpy generator that nobody has seeded or used
NUMPY_SEEDS = 1 << 32
OWN = frozenset({"torch", "numpy", "random", "steadygrad"})  # their calls pass a seed on


class Seeds:
    """Decides the seeds of this process.

    Args:
        offset: k; 0: the script's seeds are left alone.
    """

    def __init__(self, offset: int = 0) -> None:
        self.shifted = 0  # calls of the script whose seed was changed
        self._shift = STRIDE * offset

    def before_the_script(self) -> None:
        """At the interpreter's start."""
        random.seed(SEED + self._shift)
        if self._shift:
            self._wrap(random, "seed")
            AfterImport("numpy", self._numpy_is_there).install()

    def torch_is_there(self) -> None:
        """Right after torch is imported. What the script has seeded before, or seeds later, stays as it seeds it."""
        import numpy
        import torch

        torch.manual_seed(SEED + self._shift)
        _, words, position, *_ = numpy.random.get_state()
        if (int(words[0]), position) == FRESH:
            numpy.random.seed(SEED + self._shift)
        if self._shift:
            for module in (torch, torch.random):
                self._wrap(module, "manual_seed")
            for name in ("manual_seed", "manual_seed_all"):
                self._wrap(torch.cuda, name)

    def _numpy_is_there(self, numpy: ModuleType) -> None:
        for name in ("seed", "default_rng"):
            self._wrap(numpy.random, name, modulus=NUMPY_SEEDS)

    def _wrap(self, module: Any, name: str, modulus: int | None = None) -> None:
        original: Callable[..., Any] = getattr(module, name)

        @functools.wraps(original)
        def seeded(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
            if caller not in OWN:
                args, kwargs = self._shifted(args, kwargs, modulus)
            return original(*args, **kwargs)

        setattr(module, name, seeded)

    def _shifted(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], modulus: int | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same arguments with another seed, if the first or only one is a whole number."""
        given = args[0] if args else next(iter(kwargs.values()), None)
        if given is None or isinstance(given, (str, bytes, bytearray, float)):
            return args, kwargs
        try:
            seed = operator.index(given)
        except TypeError:  # an array, a SeedSequence
            return args, kwargs
        self.shifted += 1
        seed = seed + self._shift if seed + self._shift < 1 << 63 else seed - self._shift
        if modulus is not None and 0 <= operator.index(given) < modulus:
            seed %= modulus
        if args:
            return (seed, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): seed}
