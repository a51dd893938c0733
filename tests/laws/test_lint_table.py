"""Law: no lint rule is switched off outside the tables of pyproject.toml, and each row there has a reason."""

import re
import tomllib
from pathlib import Path

import pytest

from ross3d.tests.laws.house import ROOT, list_files, write_house


# Written in pieces, so that this file does not find itself.
SWITCHES = re.compile(r"#\s*(?:no" + r"qa|ruff:\s*no" + r"qa|trf-ig" + r"nore)", re.IGNORECASE)


def find_violations(root: Path) -> list[str]:
    violations = []
    for path in list_files(root, ".py"):
        for number, line in enumerate((root / path).read_text(encoding="utf-8").splitlines(), start=1):
            match = SWITCHES.search(line)
            if match:
                violations.append(f"{path}:{number}: `{match.group()}`; list the exception in pyproject.toml")
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8")).get("tool", {})
    lint = settings.get("ruff", {}).get("lint", {})
    missing = {"E", "F", "I", "UP", "B", "ERA", "S110", "T20"} - set(lint.get("select", []))
    violations += [f"pyproject.toml: ruff does not select {rule}" for rule in sorted(missing)]
    violations += [
        f"pyproject.toml: `{name}` of ruff belongs in per-file-ignores"
        for name in ("ignore", "extend-ignore")
        if lint.get(name)
    ]
    for rule, reason in settings.get("ross3d", {}).get("mlinter", {}).get("off", {}).items():
        if len(str(reason).split()) < 5:
            violations.append(f"pyproject.toml: {rule} is off without a reason")
    return violations


def test_lint_table_holds():
    violations = find_violations(ROOT)
    assert not violations, "\n".join(violations)


SETTINGS = """[tool.ruff.lint]
select = ["E", "F", "I", "UP", "B", "ERA", "S110", "T20"]
[tool.ruff.lint.per-file-ignores]
"train.py" = ["T201"]
[tool.ross3d.mlinter.off]
TRF001 = "the published name of this class is part of the contract"
"""


def test_a_listed_exception_passes(tmp_path):
    house = {"pyproject.toml": SETTINGS, "train.py": "print('done')  # the loss\n"}
    assert find_violations(write_house(tmp_path, house)) == []


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("train.py", "import os  # no" + "qa: F401\n", "train.py:1"),
        ("train.py", "# ruff: no" + "qa\n", "train.py:1"),
        ("modeling_ross3d.py", "x = 1  # trf-ig" + "nore: TRF041\n", "modeling_ross3d.py:1"),
        ("pyproject.toml", SETTINGS.replace('"ERA", ', ""), "does not select ERA"),
        (
            "pyproject.toml",
            SETTINGS.replace("[tool.ruff.lint]", '[tool.ruff.lint]\nignore = ["E501"]'),
            "per-file-ignores",
        ),
        ("pyproject.toml", SETTINGS.replace("the published name of this class is part of the contract", ""), "TRF001"),
    ],
)
def test_other_exceptions_are_found(tmp_path, name, text, found):
    violations = find_violations(write_house(tmp_path, {"pyproject.toml": SETTINGS, name: text}))
    assert any(found in violation for violation in violations), violations
