"""Compare evaluated runs question by question.

    python tools/compare.py RUN[,RUN...] RUN[,RUN...] ... [--output DIR]

Each argument is a system: an output folder of eval.py, or several, separated by commas, that differ only in the
model's seed. Prints every score with its spread over seeds and its interval over scenes, the differences of later
systems from the first, and how many answers changed. `--output` writes `comparison.json` and `comparison.html` with
the changed questions.
"""

import argparse
from pathlib import Path
from typing import Any

from ross3d.command_line import add_debug, parse_path, run_program
from ross3d.data.atomic import check_output_folder
from ross3d.report.comparison import format_comparison, make_comparison_page
from ross3d.report.run import write_page
from ross3d.tasks import find_tasks
from ross3d.tasks.comparison import compare_systems, read_run
from ross3d.tasks.records import write_json


def list_folders(system: str) -> list[Path]:
    """The folders of a system's runs.

    Raises:
        ValueError: for an empty name between commas.
    """
    names = [name.strip() for name in system.split(",")]
    if not all(names):
        raise ValueError(
            f"RUN: expected folders, separated by commas, got an empty name in {system!r}; remove a comma at the end,"
            " or the space after a comma."
        )
    return [Path(name) for name in names]


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Read, compare, print and write; returns the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "systems", nargs="+", help="output folders of eval.py; separate the seeds of one system with commas"
    )
    parser.add_argument("--output", type=parse_path, help="folder for comparison.json and comparison.html")
    add_debug(parser)
    options = parser.parse_args(args)
    if options.output is not None:
        check_output_folder(options.output, "--output")
    systems = [[read_run(folder) for folder in list_folders(system)] for system in options.systems]
    tasks = {name: task for name, task in find_tasks().items() if task.get_values is not None}
    comparison = compare_systems(systems, tasks)
    print(format_comparison(options.systems, comparison))
    if options.output is not None:
        write_json(options.output / "comparison.json", comparison)
        print(write_page(options.output / "comparison.html", make_comparison_page(options.systems, comparison)))
    return comparison


if __name__ == "__main__":
    run_program(main)
