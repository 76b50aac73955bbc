"""Run every benchmark and print where its numbers went: what `make bench` does.

python benchmarks/run.py [NAME ...]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ALL = {
    "demo": ["demo_seeds.py"],
    "healthy": ["healthy_guarded.py"],
    "cases": ["cases.py"],
    "false_alarms": ["false_alarms.py"],
    "kills": ["kill_recovery.py"],
    "snapshots": ["snapshots.py"],
    "locate": ["planted.py"],
    "forecast": ["forecast.py"],
    "diagnosis": ["diagnosis.py", "--interventions", "--cases"],
    "repair": ["repair.py", "--all"],
    "speed": ["speed.py"],
}


def main() -> int:
    chosen = sys.argv[1:] or list(ALL)
    unknown = [name for name in chosen if name not in ALL]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        script, *arguments = ALL[name]
        if subprocess.run([sys.executable, HERE / script, *arguments]).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
