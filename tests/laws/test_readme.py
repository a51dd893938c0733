"""Law: what the documents promise runs: Python blocks, commands, the tree of the README, links and pictures."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from ross3d.tests.laws.house import ROOT, list_files, write_house


BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")


def get_blocks(root: Path, path: Path, language: str) -> list[str]:
    """Fenced blocks of a document in one language."""
    return [code for name, code in BLOCK.findall((root / path).read_text(encoding="utf-8")) if name == language]


def run_python_blocks(root: Path, path: Path) -> None:
    """Run a document's Python blocks in order, as one program in the current folder."""
    names = {"__name__": "__main__"}
    for number, code in enumerate(get_blocks(root, path, "python"), start=1):
        exec(compile(code, f"{path}, Python block {number}", "exec"), names)


def find_figure_violations(root: Path) -> list[str]:
    """Shares and times of the README that no entry of the log measured: `12.3 %` has to stand in a table there."""
    page = (root / "README.md").read_text(encoding="utf-8")
    log = root / "docs" / "LOG.md"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    measured = set(re.findall(r"\d+\.\d+", " ".join(line for line in lines if line.startswith("|"))))
    claimed = set(re.findall(r"(\d+(?:\.\d+)?) %", page))
    return [f"README.md: no table of docs/LOG.md has the figure {number}" for number in sorted(claimed - measured)]


def find_tree_violations(root: Path) -> list[str]:
    """Differences between the README's tree and what stands at the top of the repository, hidden files aside."""
    trees = get_blocks(root, Path("README.md"), "text")
    if not trees:
        return ["README.md: has no tree (a block of language `text`)"]
    shown = {line.split()[0].rstrip("/") for line in trees[0].splitlines() if line.strip() and not line[0].isspace()}
    found = {path.parts[0] for path in list_files(root) if not path.parts[0].startswith(".")}
    violations = [f"README.md: the tree shows {name}, which does not exist" for name in sorted(shown - found)]
    return violations + [f"README.md: the tree does not show {name}" for name in sorted(found - shown)]


def find_command_violations(root: Path) -> list[str]:
    """Commands in the documents whose program, module, config file or make target does not exist."""
    makefile = (root / "Makefile").read_text(encoding="utf-8") if (root / "Makefile").exists() else ""
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    violations = []
    for path in list_files(root, ".md"):
        for code in get_blocks(root, path, "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["make"] and words[1] not in targets:
                    violations.append(f"{path}: `{line}`: no such target in the Makefile")
                for before, word in zip(["", *words], words, strict=False):
                    if before == "-m" and word.startswith("ross3d."):
                        package = Path(*word.split(".")[1:])
                        runs = (root / package / "__main__.py").exists()
                        file = package / "__main__.py" if runs else package.with_suffix(".py")
                    elif word.endswith((".py", ".yaml")) and not word.startswith(("-", "$")):
                        file = Path(word)
                    else:
                        continue
                    if not (root / file).exists():
                        violations.append(f"{path}: `{line}`: {file} does not exist")
    return violations


def find_link_violations(root: Path) -> list[str]:
    """Links and pictures of the documents that lead to no file."""
    violations = []
    for path in list_files(root, ".md"):
        for target in LINK.findall((root / path).read_text(encoding="utf-8")):
            if "://" not in target and not (root / path.parent / target.strip()).exists():
                violations.append(f"{path}: leads to {target}, which does not exist")
    return violations


def find_violations(root: Path) -> list[str]:
    found = find_tree_violations(root) + find_command_violations(root) + find_link_violations(root)
    return found + find_figure_violations(root)


def test_documents_hold():
    violations = find_violations(ROOT)
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize("document", ["README.md", "docs/CHECKPOINTS.md", "docs/CONFIDENCE.md"])
def test_python_blocks_run(document, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_python_blocks(ROOT, Path(document))
    assert capsys.readouterr().out


def test_the_version_is_in_the_changelog():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "docs/CHANGELOG.md").read_text(encoding="utf-8")


README = """[licence](LICENSE), right in 12.5 % of cases

```bash
make demo  # trains
accelerate launch train.py configs/tiny.yaml \\
    --data.seed 1
python -m ross3d.scenes.build --output out
python -m ross3d.data --help
```

```python
total = 1 + 1
```

```python
print(total)
```

```text
train.py     trains
configs/     runs
scenes/      rooms
data/        scans
docs/        log
Makefile     commands
LICENSE      licence
README.md    this
```
"""
HOUSE = {
    "README.md": README,
    "LICENSE": "",
    "Makefile": "demo: train.py\n\techo\n",
    "train.py": "",
    "configs/tiny.yaml": "",
    "scenes/build.py": "",
    "data/__main__.py": "",
    "docs/LOG.md": "11.5 is not in a table\n\n| right | 12.5 |\n",
    ".gitignore": "",
}


def test_true_documents_pass(tmp_path, capsys):
    write_house(tmp_path, HOUSE)
    assert find_violations(tmp_path) == []
    run_python_blocks(tmp_path, Path("README.md"))
    assert capsys.readouterr().out == "2\n"


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("make demo", "make dmeo", "no such target"),
        ("configs/tiny.yaml", "configs/large.yaml", "configs/large.yaml does not exist"),
        ("ross3d.scenes.build", "ross3d.scenes.made", "scenes/made.py does not exist"),
        ("ross3d.data --help", "ross3d.scenes --help", "scenes.py does not exist"),
        ("scenes/      rooms\n", "", "the tree does not show scenes"),
        ("scenes/      rooms", "scenes/  r\nmetrics/  numbers", "the tree shows metrics"),
        ("(LICENSE)", "(docs/LICENSE)", "leads to docs/LICENSE"),
        ("(LICENSE)", "(LICENSE) ![a room](docs/room.png)", "leads to docs/room.png"),
        ("12.5 %", "11.5 %", "no table of docs/LOG.md has the figure 11.5"),
        ("```text", "```toml", "has no tree"),
    ],
)
def test_false_documents_are_found(tmp_path, right, wrong, found):
    assert right in README
    house = {**HOUSE, "README.md": README.replace(right, wrong)}
    assert any(found in violation for violation in find_violations(write_house(tmp_path, house)))


def test_a_broken_block_fails(tmp_path):
    write_house(tmp_path, {"README.md": README.replace("print(total)", "print(totla)")})
    with pytest.raises(NameError, match="totla"):
        run_python_blocks(tmp_path, Path("README.md"))
