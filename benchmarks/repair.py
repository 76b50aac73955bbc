"""Does repair cure what fails, and leave alone what trains? Beside what people do today.

    OMP_NUM_THREADS=1 python benchmarks/repair.py --all [--seeds 10 11 12] [--case-seeds 0 1 2] [--jobs 2] [--fresh]
    python benchmarks/repair.py --zoo --only sgd_lr_large ring_gan    a few families; nothing is saved
    python benchmarks/repair.py                                       the table of what there is, nothing is run

Parts, each of which can be interrupted and goes on where it was:

    --baselines   ten strategies on the failing draws of the zoo, one seed after the other
    --zoo         repair on the zoo, in this process: failing families and healthy ones; --twins: and the twins
    --cases       the real cases through the command line, by their own verdict
    --text        two plain scripts on real text, through the command line
    --patches     the two above: each prescription's patch on a copy of the script, run without steadygrad

Prints tables of the rows that there are. Once there are some of repair itself, draws ``docs/img/repair.png`` and saves
``benchmarks/results/repair.json``. Shares there are ``{hits, of, value, interval}`` with Wilson's 95 % interval. Keys:

    seeds, commits     of the rows; more than one commit: a cache older than the code
    zoo                see benchmarks/repair_zoo.py
      trained          {STRATEGY: {overall, non-blind, blind}}: of the draws that fail when nothing is done
      bars             97.5 % overall and 85 % blind
      blind_without_named    the blind share without the families of which something was known
      healthy, twins   those for which nothing is prescribed and no loss is changed by a bit, and the others
      cost             of failing and of healthy ones: in runs, extra steps, extra seconds; median and 90th percentile
      cures            each beside its twin, the run without the remedies
      missed           the others
    cases, text        see benchmarks/repair_cases.py
    patches            of the prescriptions that claim a patch: those whose patched copy trains
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import save
from benchmarks.repair_baselines import STRATEGIES, baseline_row, kind
from benchmarks.repair_cases import CASES, TEXT, case_draws, case_row, case_scores, patch_scores, text_draws
from benchmarks.repair_table import show
from benchmarks.repair_zoo import KIND, repair_row, zoo_scores
from benchmarks.scores import to_json
from benchmarks.zoo_cache import cached, draws, rows
from benchmarks.zoo_runs import Draw, by_name, truth_row

SEEDS = (10, 11, 12)
CASE_SEEDS = (0, 1, 2)


def make_baselines(wanted: Sequence[Draw], jobs: int, fresh: bool) -> None:
    """Seed by seed, so that what there is of an interrupted run is whole for its first seeds."""
    faulty = [d for d in wanted if not d.fixed and not by_name()[d.family].healthy]
    rows("truth", truth_row, faulty, jobs=jobs)
    for seed in dict.fromkeys(d.seed for d in faulty):
        for name in STRATEGIES:
            of_seed = [d for d in faulty if d.seed == seed]
            rows(kind(name), partial(baseline_row, name), of_seed, jobs=jobs, fresh=fresh)


def make_zoo(wanted: Sequence[Draw], jobs: int, fresh: bool, twins: bool) -> None:
    chosen = [d for d in wanted if twins or not d.fixed]
    rows("truth", truth_row, [d for d in chosen if not by_name()[d.family].healthy], jobs=jobs)
    for seed in dict.fromkeys(d.seed for d in chosen):
        rows(KIND, repair_row, [d for d in chosen if d.seed == seed], jobs=jobs, fresh=fresh)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for part in ("baselines", "zoo", "cases", "text", "patches", "all"):
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument(
        "--twins", action="store_true", help="with --zoo: the twins without the fault as well"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the zoo")
    parser.add_argument(
        "--case-seeds", type=int, nargs="+", default=list(CASE_SEEDS), help="of cases and texts"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="these families; nothing is saved"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    args = parser.parse_args()
    wanted = draws(args.seeds, args.only)
    if args.baselines or args.all:
        make_baselines(wanted, args.jobs, args.fresh)
    if args.zoo or args.all:
        make_zoo(wanted, args.jobs, args.fresh, args.twins)
    if args.cases or args.patches or args.all:
        rows(CASES, case_row, case_draws(args.case_seeds), jobs=args.jobs, fresh=args.fresh)
    if args.text or args.patches or args.all:
        rows(TEXT, case_row, text_draws(args.case_seeds), jobs=args.jobs, fresh=args.fresh)
    ours = [row for d, row in cached(KIND).items() if d in set(wanted)]
    cases, texts = list(cached(CASES).values()), list(cached(TEXT).values())
    result = {
        "zoo": zoo_scores(wanted, cached("truth")),
        "cases": case_scores(cases),
        "text": case_scores(texts),
        "patches": patch_scores([*cases, *texts]),
    }
    show(result)
    if ours and not args.only:
        from benchmarks.repair_figures import draw_repair

        draw_repair(result)
        commits = sorted({row["commit"] for row in (*ours, *cases, *texts)})
        save("repair", to_json({"seeds": args.seeds, "commits": commits, **result}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
