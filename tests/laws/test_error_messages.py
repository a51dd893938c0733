"""Law: every error message has a test that reads it.

A message counts as read when a test holds a piece of it that points to it: words in a row that no other has, or
three that few others have. In tests that import the message's own file, words that no other message of that file has
are enough. Names filled in at run time do not count. Messages are found where they are raised, and, for the checkers
whose whole message comes from their caller, where those are called.
"""

import ast
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from ross3d.tests.laws.house import ROOT, get_module_name, list_files, parse, write_house


# Rooms whose callers are users: everything but programs and tests.
OUTSIDE = {"tools", "tests", "bench"}
UNTESTED = {"NotImplementedError", "ImportError", "StopIteration", "AssertionError"}
# Letters in a piece, at least: anywhere, and in a test of the message's own file.
MIN_LETTERS, MIN_LETTERS_OWN = 12, 8
FEW = 3
BLANK = "\0"


@dataclass(frozen=True)
class Message:
    """One place that can raise; in `text` everything known only at run time is blank."""

    path: Path
    line: int
    text: str


def get_text(node: ast.expr | None, known: dict[str, ast.expr] | None = None) -> str:
    """The words of an expression as far as they are written out; `known` gives expressions for names."""
    known = known or {}
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(get_text(value, known) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return get_text(node.value, known)
    if isinstance(node, ast.Name) and node.id in known:
        return get_text(known[node.id])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return get_text(node.left, known) + get_text(node.right, known)
    if isinstance(node, ast.IfExp):
        return f"{get_text(node.body, known)}{BLANK}{get_text(node.orelse, known)}"
    return BLANK


def get_words(text: str) -> list[list[str]]:
    """Words of each stretch between blanks."""
    return [re.findall(r"[\w.=<>']*\w[\w.=<>']*", part) for part in text.split(BLANK)]


def get_runs(text: str) -> set[tuple[str, ...]]:
    """Every run of two to six words in `text` that is long enough to stand for a message."""
    runs = set()
    for words in get_words(text):
        words = [word.strip(".'") for word in words]
        spans = ((start, start + size) for size in range(2, 7) for start in range(len(words) - size + 1))
        runs |= {tuple(words[start:end]) for start, end in spans}
    return {run for run in runs if count_letters(run) >= MIN_LETTERS_OWN}


def count_letters(run: tuple[str, ...]) -> int:
    return sum(map(len, run))


def get_call_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def list_raises(tree: ast.AST) -> list[ast.Raise]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and node.exc.args
        and get_call_name(node.exc.func) not in UNTESTED
    ]


def find_checkers(trees: dict[Path, ast.Module]) -> dict[str, tuple[ast.FunctionDef, ast.Raise]]:
    """Functions named `check...` whose one message has no run of words of its own, with the raise in them."""
    checkers = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("check"):
                raises = list_raises(node)
                if len(raises) == 1 and {arg.arg for arg in node.args.args} >= {"name", "expected"}:
                    checkers[node.name] = (node, raises[0])
    return checkers


def list_messages(root: Path) -> list[Message]:
    paths = [path for path in list_files(root, ".py") if path.parts[0] not in OUTSIDE and path.name != "conftest.py"]
    trees = {path: parse(root, path) for path in paths}
    checkers = find_checkers(trees)
    inside = {id(found) for _, found in checkers.values()}
    messages = []
    for path, tree in trees.items():
        for node in list_raises(tree):
            if id(node) not in inside:
                messages.append(Message(path, node.lineno, get_text(node.exc.args[0], find_assigned(tree, node))))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and get_call_name(node.func) in checkers:
                function, found = checkers[get_call_name(node.func)]
                given = dict(zip([arg.arg for arg in function.args.args], node.args, strict=False))
                given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
                messages.append(Message(path, node.lineno, get_text(found.exc.args[0], given)))
    return messages


def find_assigned(tree: ast.Module, node: ast.Raise) -> dict[str, ast.expr]:
    """Texts that stand in a variable: the nearest assignment above the raise."""
    assigned = {}
    for other in ast.walk(tree):
        if isinstance(other, ast.Assign) and other.lineno < node.lineno and isinstance(other.targets[0], ast.Name):
            known = assigned.get(other.targets[0].id)
            if known is None or known.lineno < other.lineno:
                assigned[other.targets[0].id] = other.value
    return assigned


def read_test_runs(root: Path) -> dict[str, set[tuple[str, ...]]]:
    """Source of each test file -> runs of words in the texts that its tests write down.

    Only files that expect errors count; docstrings do not; patterns are made plain.
    """
    runs = {}
    for path in list_files(root, ".py"):
        if path.parts[0] != "tests" or path.parts[1:2] == ("laws",):
            continue
        source = (root / path).read_text(encoding="utf-8")
        if "raises(" not in source:
            continue
        tree = ast.parse(source)
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in prose]
        plain = (re.sub(r"\.[*+]\??|\|", BLANK, text).replace("\\", "") for text in texts if isinstance(text, str))
        runs[source] = {run for text in plain for run in get_runs(text)}
    return runs


def count_runs(messages: list[Message]) -> Counter:
    """In how many different messages each run of words stands."""
    return Counter(run for text in {message.text for message in messages} for run in get_runs(text))


def find_violations(root: Path) -> list[str]:
    messages = list_messages(root)
    everywhere = count_runs(messages)
    in_file = {path: count_runs([m for m in messages if m.path == path]) for path in {m.path for m in messages}}
    test_runs = read_test_runs(root)
    tested = set().union(*test_runs.values())
    violations = []
    for message in messages:
        where = f"{message.path}:{message.line}"
        runs = get_runs(message.text)
        pointing = {run for run in runs if count_letters(run) >= MIN_LETTERS and everywhere[run] == 1}
        pointing |= {
            run for run in runs if count_letters(run) >= MIN_LETTERS and everywhere[run] <= FEW and len(run) > 2
        }
        own = {run for run in runs if in_file[message.path][run] == 1}
        module = f"ross3d.{get_module_name(message.path)}"
        tested_own = set().union(*(found for source, found in test_runs.items() if module in source))
        shown = " ".join(message.text.replace(BLANK, "…").split())
        if not pointing | own:
            violations.append(f"{where}: no words of its own: {shown}")
        elif not pointing & tested and not own & tested_own:
            violations.append(f"{where}: no test reads: {shown}")
    return violations


def test_error_messages_hold():
    violations = find_violations(ROOT)
    assert not violations, f"{len(violations)} messages\n" + "\n".join(violations)


MESSAGE = "x: expected three axes in metres, got {x.dim()}; stack the views."
HOUSE = {
    "geometry_ross3d.py": (
        "def check(rule, name, expected, got, remedy):\n"
        "    if not rule:\n"
        "        raise ValueError(f'{name}: expected {expected}, got {got}; {remedy}.')\n\n"
        "def pool(x, patch_size):\n"
        "    check(patch_size > 0, 'patch_size', 'a whole number above 0', patch_size, 'take that of the tower')\n"
        "    if x.dim() != 3:\n"
        "        raise ValueError(f'x: expected three axes in metres, got {x.dim()}; stack the views.')\n"
    ),
    "tests/test_geometry.py": (
        "import pytest\n"
        "def test_pool():\n"
        "    with pytest.raises(ValueError, match='patch_size: expected a whole number.*-1'):\n        pool(0, -1)\n"
        "    with pytest.raises(ValueError, match=r'three axes in metres, got 1'):\n        pool(0, 1)\n"
    ),
}


def test_messages_with_tests_pass(tmp_path):
    assert find_violations(write_house(tmp_path, HOUSE)) == []
    assert len(list_messages(tmp_path)) == 2


@pytest.mark.parametrize(
    ("name", "right", "wrong", "found"),
    [
        ("tests/test_geometry.py", "three axes in metres", "axes", "no test reads: x: expected three axes"),
        (
            "tests/test_geometry.py",
            "patch_size: expected a whole number",
            "whole",
            "no test reads: patch_size: expected a whole",
        ),
        ("tests/test_geometry.py", "raises(", "warns(", "no test reads: x: expected"),
        (
            "geometry_ross3d.py",
            MESSAGE,
            "bad x",
            "no words",
        ),
        ("geometry_ross3d.py", MESSAGE, "{x}", "no words"),
    ],
)
def test_messages_without_tests_are_found(tmp_path, name, right, wrong, found):
    assert right in HOUSE[name]
    violations = find_violations(write_house(tmp_path, {**HOUSE, name: HOUSE[name].replace(right, wrong)}))
    assert any(found in violation for violation in violations), violations
