"""Law: files that ship with the weights import only what `trust_remote_code` finds on a user's machine."""

import ast
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

from ross3d.tests.laws.house import ROOT, list_shipped, parse, write_house


ALLOWED = {"torch", "transformers", "huggingface_hub", "numpy", "PIL"} | set(sys.stdlib_module_names)
DOORS = ("configuration_ross3d.py", "processing_ross3d.py", "modeling_ross3d.py")


def find_violations(root: Path) -> list[str]:
    violations = []
    shipped = {path.stem for path in list_shipped(root)}
    for path in list_shipped(root):
        file = root / path
        siblings = set()
        for node in ast.walk(parse(root, path)):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            where = f"{path}:{node.lineno}"
            if node.level > 1 or not node.module or "." in node.module:
                written = f"from {'.' * node.level}{node.module or ''} import"
                violations.append(
                    f"{where}: `{written}` does not load from a checkpoint; write `from .name_ross3d import`"
                )
            elif node.module not in shipped:
                violations.append(f"{where}: `{node.module}` does not ship with the weights")
            else:
                siblings.add(node.module)
        # The library looks for relative imports in the text, docstrings included.
        for name in sorted(set(get_relative_imports(file)) - siblings):
            violations.append(f"{path}: a line of text reads like `from .{name} import`, which the library follows")
        # Its own scan for packages: all imports but those inside `try` and `if is_..._available()`.
        for name in sorted(set(get_imports(file)) - ALLOWED):
            violations.append(f"{path}: needs `{name}`, which users do not have; guard it or do without")
    return violations


def test_shipped_imports_hold():
    violations = find_violations(ROOT)
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize("door", DOORS)
def test_everything_a_door_reaches_ships(door):
    if not (ROOT / door).exists():
        pytest.skip(f"{door} is not written yet")
    reached = {Path(file).relative_to(ROOT) for file in get_relative_import_files(ROOT / door)}
    assert reached <= set(list_shipped(ROOT))


HOUSE = {
    "geometry_ross3d.py": "import math\n\nimport torch\n",
    "modeling_ross3d.py": (
        '"""See geometry_ross3d."""\n\nimport numpy as np\nfrom PIL import Image\nfrom torch import nn\n'
        "from transformers.utils import is_peft_available\nfrom .geometry_ross3d import unproject\n"
        "try:\n    import diffusers\nexcept ImportError:\n    diffusers = None\n"
        "if is_peft_available():\n    import peft\n"
    ),
}


def test_allowed_imports_pass(tmp_path):
    assert find_violations(write_house(tmp_path, HOUSE)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import diffusers\n", "needs `diffusers`"),
        ("def f():\n    from diffusers import AutoencoderKL\n", "needs `diffusers`"),
        ("from ross3d.geometry_ross3d import unproject\n", "needs `ross3d`"),
        ("import geometry_ross3d\n", "needs `geometry_ross3d`"),
        ("from .data.scene import Scene\n", "`from .data.scene import` does not load"),
        ("from . import geometry_ross3d\n", "`from . import` does not load"),
        ("from ..ross3d import geometry_ross3d\n", "`from ..ross3d import` does not load"),
        ("from .bev import render_bev\n", "`bev` does not ship"),
        ('"""Uses what\nfrom .data_ross3d import Scene\ngives."""\n', "a line of text reads like"),
    ],
)
def test_forbidden_imports_are_found(tmp_path, text, found):
    house = {**HOUSE, "bev.py": "", "data/scene.py": "", "modeling_ross3d.py": text}
    violations = find_violations(write_house(tmp_path, house))
    assert any(found in violation for violation in violations), violations
