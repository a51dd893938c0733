"""Law: every option of every command says what it means."""

import ast
from pathlib import Path

import pytest

from ross3d.tests.laws.house import ROOT, list_files, parse, write_house


def find_violations(root: Path) -> list[str]:
    violations = []
    for path in list_files(root, ".py"):
        if path.parts[0] == "tests":
            continue
        for node in ast.walk(parse(root, path)):
            is_option = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
            if is_option and not any(keyword.arg in ("help", None) for keyword in node.keywords):
                name = ast.unparse(node.args[0]) if node.args else "an option"
                violations.append(f"{path}:{node.lineno}: {name} has no help; say in some words what it sets")
    return violations


def test_every_option_has_help():
    violations = find_violations(ROOT)
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('parser.add_argument("--views", type=int, help="number of views")\n', 0),
        ('parser.add_argument("--views", **VIEWS)\n', 0),
        ('parser.add_argument("--views", type=int)\nparser.add_argument("folder")\n', 2),
    ],
)
def test_options_without_help_are_found(text, count, tmp_path):
    write_house(tmp_path, {"tools/ask.py": text, "tests/test_ask.py": text})
    assert len(find_violations(tmp_path)) == count
