"""Is the producer of the first non-finite value named right? Planted faults, one producer each.

    OMP_NUM_THREADS=1 python benchmarks/planted.py [NAME ...]

Each training runs twice from the same seed: to see that it breaks, and under the locator. Right means: the module,
the operation and the line where the fault was planted. Where the fault is no single line (a learning rate, an
initialisation), brute force over all variables of the run says where it comes to light first. Numbers go to
``benchmarks/results/locate.json``.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.common import save
from benchmarks.planted_cases import losses, nets, updates
from benchmarks.planted_cases.oracle import Tracer
from benchmarks.planted_cases.training import Planted, Training, planted
from steadygrad.locating.exact import Locator
from steadygrad.records import FirstNonFinite

assert losses and nets and updates  # each registers its cases


@dataclass(frozen=True)
class Verdict:
    """How the locator did on one training."""

    name: str
    b8: bool
    kind: bool
    module: bool
    op: bool
    line: bool
    sample: bool
    found: str

    @property
    def right(self) -> bool:
        return self.module and self.op and self.line


def built(case: Planted) -> Training:
    torch.manual_seed(0)
    return case.build()


def breaks(case: Planted) -> bool:
    """Whether the loss or a parameter of the training ceases to be finite."""
    training = built(case)
    for batch in training.batches:
        tensors = [training.step(batch), *training.model.parameters()]
        if not all(bool(torch.isfinite(t).all()) for t in tensors):
            return True
    return False


def located(case: Planted) -> FirstNonFinite | None:
    training = built(case)
    with Locator([training.model]) as locator:
        for batch in training.batches:
            training.step(batch)
            if locator.first is not None:
                break
    assert not locator.notes, locator.notes
    return locator.first


def judged(case: Planted) -> Verdict:
    assert breaks(case), f"{case.name} does not break"
    if case.by_oracle:
        truth = Tracer(built(case)).run()
        assert truth is not None, f"brute force found nothing in {case.name}"
        file, line, module = truth.file, truth.line, truth.module
    else:
        (file, line), module = case.marked_line(), case.module
    found = located(case)
    if found is None:
        return Verdict(case.name, case.b8, False, False, False, False, False, "nothing")
    return Verdict(
        case.name,
        case.b8,
        kind=found.kind in case.kinds,
        module=found.module == module,
        op=found.op in case.ops,
        line=(Path(found.file).name, found.line) == (file, line),
        sample=case.sample is None or found.sample == case.sample,
        found=f"{found.kind} {found.module or '-'} {found.op} {Path(found.file).name}:{found.line} {found.detail}"
        + (f" [{found.growth}]" if found.growth else "")
        + (
            "" if found.line == line and found.module == module else f" (true: {module or '-'} {file}:{line})"
        ),
    )


def main() -> int:
    chosen = [c for c in planted.cases if not sys.argv[1:] or c.name in sys.argv[1:]]
    verdicts = [judged(case) for case in chosen]
    mark = {True: "yes", False: "NO"}
    print(f"{'training':30}{'B8':4}{'kind':6}{'module':8}{'op':5}{'line':6}{'sample':8}found")
    for v in verdicts:
        flags = f"{mark[v.kind]:6}{mark[v.module]:8}{mark[v.op]:5}{mark[v.line]:6}{mark[v.sample]:8}"
        print(f"{v.name:30}{'*' if v.b8 else '':4}{flags}{v.found}")
    total = {"trainings": len(verdicts), "all_three": sum(v.right for v in verdicts)}
    for field in ("kind", "module", "op", "line", "sample"):
        total[field] = sum(getattr(v, field) for v in verdicts)
    b8 = [v for v in verdicts if v.b8]
    total |= {"b8": len(b8), "b8_module": sum(v.module for v in b8), "b8_op": sum(v.op for v in b8)}
    print(total)
    if not sys.argv[1:]:
        save("locate", {"total": total, "trainings": [asdict(v) for v in verdicts]})
    return 0 if total["all_three"] == len(verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
