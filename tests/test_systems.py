"""docs/SYSTEMS.md: each row of its table is what a published checkpoint of the system becomes when it is converted."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ross3d.tests.published import write_published, write_published_3drs
from ross3d.tests.test_convert import run


ROOT = Path(__file__).resolve().parents[1]
SECTION = "its own section"


def read_table() -> tuple[list[str], dict[str, list[str]]]:
    """Names of the systems, and the values of each setting."""
    lines = [line for line in (ROOT / "docs" / "SYSTEMS.md").read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return cells[0][1:], {row[0].strip("` "): row[1:] for row in cells[1:]}


def agrees(cell: str, value: Any) -> bool:
    return isinstance(value, dict) if cell == SECTION else yaml.safe_load(cell.strip("`")) == value


@pytest.mark.parametrize(("place", "write"), [(0, write_published), (1, write_published_3drs)])
def test_the_table_is_what_conversion_gives(place, write, tmp_path):
    names, table = read_table()
    assert names == ["Ross3D", "3DRS"]
    folder = run(write(tmp_path / "published").folder, tmp_path / "ours")
    saved = {
        "model": json.loads((folder / "config.json").read_text()),
        "processor": json.loads((folder / "processor_config.json").read_text()),
    }
    compared = 0
    for setting, cells in table.items():
        found = re.fullmatch(r"(model|processor)\.(\w+)", setting)
        if found:
            value = saved[found[1]].get(found[2])
            assert agrees(cells[place], value), f"{setting}: {cells[place]} in the table, {value!r} in the checkpoint"
            compared += 1
    assert compared == 10
    for setting in ("published recipe", "small model on a CPU"):
        file = re.search(r"\(\.\./(configs/[\w.]+)\)", table[setting][place])[1]
        model = yaml.safe_load((ROOT / file).read_text()).get("model", {})
        for name in ("denoiser_config", "distillation_config"):
            has_section = name in model and model[name] is not None
            starts_whole = "init_from" in yaml.safe_load((ROOT / file).read_text()) and name not in model
            assert has_section == (table[f"model.{name}"][place] == SECTION) or starts_whole, (file, name)
