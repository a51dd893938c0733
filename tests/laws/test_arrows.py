"""Law: who may import whom. The table stands in CONTRIBUTING.md and is read from there."""

import re
from pathlib import Path

import pytest

from ross3d.tests.laws.house import ROOT, get_module_name, list_files, list_own_imports, write_house


ANYTHING = "anything"


def read_arrows(root: Path) -> dict[str, set[str]]:
    """Room -> rooms it may import, from the table in CONTRIBUTING.md whose head is `| who | may import |`."""
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.search(r"^\| who \| may import \|\n\|[-| ]+\|\n((?:\|.*\|\n)+)", text, flags=re.MULTILINE)
    if table is None:
        raise ValueError("CONTRIBUTING.md: expected a table with the head `| who | may import |`, got none.")
    arrows = {}
    for row in table.group(1).splitlines():
        who, whom = (re.findall(r"`([^`]+)`", cell) for cell in row.strip("|").split("|"))
        for name in who:
            arrows[name] = {ANYTHING} if "anything" in row else set(whom)
    return arrows


def find_row(module: str, names) -> str | None:
    """The longest of `names` that is `module` or a package around it."""
    matches = [name for name in names if module == name or module.startswith(f"{name}.")]
    return max(matches, key=len, default=None)


def find_violations(root: Path) -> list[str]:
    arrows = read_arrows(root)
    violations = []
    for path in list_files(root, ".py"):
        module = get_module_name(path)
        if module in ("", "conftest"):
            continue
        room = find_row(module, arrows)
        if room is None:
            violations.append(f"{path}: has no row in the table of CONTRIBUTING.md")
            continue
        for line, target, style in list_own_imports(root, path):
            where = f"{path}:{line}"
            is_shipped = path.parent == Path() and path.stem.endswith("_ross3d")
            if style == "bare":
                violations.append(f"{where}: imports `{target}` by its bare name; write ross3d.{target}")
            elif style == "relative" and not is_shipped:
                violations.append(f"{where}: relative import; outside shipped files write ross3d.{target}")
            elif style == "absolute" and is_shipped:
                violations.append(f"{where}: shipped files reach each other as `.{target}`, not through ross3d")
            if ANYTHING in arrows[room] or find_row(target, {room}) or find_row(target, arrows[room]):
                continue
            violations.append(f"{where}: `{room}` may not import `{target}`")
    return violations


def test_arrows_hold():
    violations = find_violations(ROOT)
    assert not violations, "\n".join(violations)


def test_every_row_of_the_table_exists():
    modules = {get_module_name(path) for path in list_files(ROOT, ".py")}
    for name in read_arrows(ROOT):
        assert any(find_row(module, {name}) for module in modules), f"CONTRIBUTING.md names `{name}`: no such room"


TABLE = """| who | may import |
|---|---|
| `geometry_ross3d` | nothing |
| `modeling_ross3d`, `data` | `geometry_ross3d` |
| `scenes` | `data.scene` |
| `train` | `data` |
| `tools`, `tests` | anything |
"""
HOUSE = {
    "CONTRIBUTING.md": TABLE,
    "__init__.py": "",
    "geometry_ross3d.py": "import torch\n",
    "data/scene.py": "from ross3d.geometry_ross3d import unproject\nimport json\n",
    "data/bev.py": "from ross3d.data.scene import Scene\n",
    "scenes/rooms.py": "from ross3d.data import scene\n",
    "train.py": "from ross3d.data.scene import Scene\n",
    "tools/ask.py": "from ross3d.train import main\n",
    "tests/test_ask.py": "import ross3d.tools.ask\n",
}


def test_allowed_imports_pass(tmp_path):
    assert find_violations(write_house(tmp_path, HOUSE)) == []


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("geometry_ross3d.py", "from .data import scene\n", "`geometry_ross3d` may not import `data.scene`"),
        ("geometry_ross3d.py", "def f():\n    import ross3d.data.scene\n", "may not import `data.scene`"),
        (
            "modeling_ross3d.py",
            "try:\n    from ross3d.geometry_ross3d import a\nexcept ImportError:\n    a = 1\n",
            "as `.g",
        ),
        ("data/scene.py", "from ross3d.scenes.rooms import Room\n", "`data` may not import `scenes.rooms`"),
        ("data/scene.py", "from ..scenes.rooms import Room\n", "may not import `scenes.rooms`"),
        ("data/scene.py", "from . import bev\n", "relative import"),
        ("data/scene.py", "from ross3d import train\n", "`data` may not import `train`"),
        ("scenes/rooms.py", "from ross3d.data import bev\n", "`scenes` may not import `data.bev`"),
        ("scenes/rooms.py", "import data.scene\n", "by its bare name"),
        ("scenes/rooms.py", "from geometry_ross3d import unproject\n", "by its bare name"),
        ("train.py", "from ross3d.tools.ask import main\n", "`train` may not import `tools.ask`"),
        ("train.py", "import importlib\nimportlib.import_module('ross3d.tests.test_ask')\n", "may not import `tests"),
        ("train.py", "import importlib\nimportlib.import_module(f'ross3d.tools.{x}')\n", "may not import `tools`"),
        ("report/page.py", "import json\n", "has no row"),
    ],
)
def test_forbidden_imports_are_found(tmp_path, name, text, found):
    violations = find_violations(write_house(tmp_path, {**HOUSE, name: text}))
    assert any(found in violation and name in violation for violation in violations), violations
