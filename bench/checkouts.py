"""The same harness in two checkouts, in turn: how many times as long the new one takes.

    python bench/checkouts.py OLD NEW --figure packed_seconds [--rounds 5] -- bench/train_step.py --questions 8

OLD and NEW are checkouts in folders named `ross3d`. Each round runs NEW's script on the code of the one and the other.
`--figure` is a number in the line that it prints.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ross3d.bench.harness import compare, print_line


def read_figure(checkout: Path, script: Path, options: list[str], figure: str) -> tuple[float, dict[str, Any]]:
    """The figure of one run on a checkout's code, and the line that it stands in."""
    environment = os.environ | {"PYTHONPATH": str(checkout.parent)}
    command = [sys.executable, "-W", "ignore", str(script), *options]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script}: expected a run on {checkout}, got an error: {done.stderr.strip()[-600:]}")
    line = json.loads(done.stdout.strip().splitlines()[-1])
    return float(line[figure]), line


def run(old: Path, new: Path, figure: str, rounds: int, script: str, options: list[str]) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"old": [], "new": []}
    lines = {}
    for _ in range(rounds):
        for name, checkout in (("old", old), ("new", new)):
            value, lines[name] = read_figure(checkout, new / script, options, figure)
            seconds[name].append(value)
    return {
        "bench": "checkouts", "script": script, "options": options, "figure": figure, "rounds": rounds,
        "old": lines["old"]["commit"], "new": lines["new"]["commit"], "hardware": lines["new"]["hardware"],
        "threads": lines["new"]["threads"], "new_over_old": compare(seconds, "new", "old"),
        "seconds": {name: min(values) for name, values in seconds.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="checkout of the earlier commit, a folder named ross3d")
    parser.add_argument("new", type=Path, help="checkout of the later commit, a folder named ross3d")
    parser.add_argument("--figure", default="seconds", help="name of the seconds in the line that the script prints")
    parser.add_argument("--rounds", type=int, default=5, help="how often both are run")
    parser.add_argument("script", help="harness, from the root of the checkout, after --")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="its options")
    given = parser.parse_args()
    old, new = given.old.resolve(), given.new.resolve()
    print_line(run(old, new, given.figure, given.rounds, given.script, given.options))


if __name__ == "__main__":
    main()
