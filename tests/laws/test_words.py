"""Law: words that do not belong: paths of one machine, hosts nobody needs, names without meaning, shadowing names."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from ross3d.tests.laws.house import ROOT, list_files, parse, write_house


TEXT = (".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".jsonl", ".html", ".css", ".js", ".jinja", ".sh", "")
# A path that begins at the root of some machine; `/dev/null`, `/usr/bin/env` and the like are everybody's.
MACHINE_PATH = re.compile(r"(?<![\w.~}/)\]\-])/(?:work|tmp|opt|root|home|mnt|srv|Users)/[\w.]")
HOST = re.compile(r"(?:https?|file)://([\w.\-{}]+)")
HOSTS = {
    "www.apache.org",
    "arxiv.org",
    "docs.pytest.org",
    "github.com",
    "huggingface.co",
    "www.w3.org",
    "127.0.0.1",
    "localhost",
}
BAD_FILES = {"utils.py", "helpers.py", "misc.py", "common.py"}
BAD_FUNCTIONS = re.compile(r"^_?(?:handle_|do_|process_data$)")
BAD_ARGUMENTS = {"extrinsics", "pose", "poses", "intr", "extr", "pts3d", "xyzs"}
# Running a door puts the checkout on sys.path: a room with one of these names would hide the library.
LIBRARIES = {"accelerate", "datasets", "diffusers", "evaluate", "numpy", "tokenizers", "torch", "transformers", "yaml"}


def find_violations(root: Path) -> list[str]:
    violations = []
    for path in list_files(root):
        if path.suffix in TEXT:
            try:
                text = (root / path).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            for number, line in enumerate(text.splitlines(), start=1):
                for match in MACHINE_PATH.finditer(line):
                    violations.append(f"{path}:{number}: names a path of one machine: {line[match.start() :][:40]}")
                for host in HOST.findall(line):
                    if host.lower() not in HOSTS and not host.startswith("{"):
                        violations.append(f"{path}:{number}: names the host {host}, which is not in the law's list")
        if path.name in BAD_FILES:
            violations.append(f"{path}: a name that says nothing; call the file by what is in it")
        if path.suffix == ".py":
            violations += find_bad_names(root, path)
        top = path.parts[0].removesuffix(".py")
        if top in LIBRARIES or (top in sys.stdlib_module_names and path.suffix == ".py"):
            violations.append(f"{path}: `{top}` would hide the library of that name")
    return violations


def find_bad_names(root: Path, path: Path) -> list[str]:
    violations = []
    for node in ast.walk(parse(root, path)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        where = f"{path}:{node.lineno}"
        if BAD_FUNCTIONS.match(node.name):
            violations.append(f"{where}: `{node.name}` says nothing; see the verbs in CONTRIBUTING.md")
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for name in sorted(BAD_ARGUMENTS.intersection(argument.arg for argument in arguments)):
            violations.append(f"{where}: argument `{name}`; say cam2world, world2cam, intrinsics or world_coords")
    return violations


def test_words_hold():
    violations = find_violations(ROOT)
    assert not violations, "\n".join(violations)


def test_every_package_is_installed():
    """A room that `pyproject.toml` does not list is missing from an installed copy."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(["ross3d", *path.parent.parts]) for path in list_files(ROOT, ".py") if path.name == "__init__.py"
    }
    found = {name for name in found if name.split(".")[1:2] not in (["tests"], ["bench"])}
    assert sorted(found) == sorted(listed)


def test_every_room_is_a_package():
    folders = {path.parent for path in list_files(ROOT, ".py") if path.parts[0] not in ("tests", "bench")}
    missing = [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists()]
    assert not missing, f"folders with Python files but without __init__.py: {missing}"


def test_belonging_words_pass(tmp_path):
    house = {
        "data/scene.py": "def load(path, cam2world):\n    return path / 'tmp/x', '../shared/work/x', '/dev/null'\n",
        "README.md": "See https://huggingface.co/x and outputs/demo/report.html and {root}/tmp/x.\n",
    }
    assert find_violations(write_house(tmp_path, house)) == []


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("README.md", "Scenes lie in /" + "home/me/scenes.\n", "path of one machine"),
        ("data/scene.py", "ROOT = '/" + "mnt/data/scannet'\n", "path of one machine"),
        ("requirements.txt", "--index-url https://" + "mirror.example.org/simple\n", "names the host"),
        ("data/utils.py", "", "says nothing; call the file"),
        ("data/scene.py", "def handle_scene():\n    return 1\n", "`handle_scene` says nothing"),
        ("data/scene.py", "def do_it():\n    return 1\n", "`do_it` says nothing"),
        ("data/scene.py", "def load(pose):\n    return 1\n", "argument `pose`"),
        ("datasets/__init__.py", "", "would hide the library"),
        ("types.py", "", "would hide the library"),
    ],
)
def test_other_words_are_found(tmp_path, name, text, found):
    violations = find_violations(write_house(tmp_path, {name: text}))
    assert any(found in violation for violation in violations), violations
