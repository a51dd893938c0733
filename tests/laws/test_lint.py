"""Law: ruff and the models' linter find nothing, and would find what they are there for."""

import subprocess
import sys

import pytest

from ross3d.tests.laws.house import ROOT, write_house
from ross3d.tools.lint_models import judge, lint, read_table


def run_ruff(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", *arguments]
    return subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True)


def test_ruff_finds_nothing():
    done = run_ruff(".")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("try:\n    x = 1\nexcept:\n    x = 2\n", "E722"),
        ("try:\n    x = 1\nexcept Exception:\n    pass\n", "S110"),
        ("x = 1\n# y = load(x)\n", "ERA001"),
        ("print('loss')\n", "T201"),
        ("import os\n", "F401"),
        ("def f(x=[]):\n    return x\n", "B006"),
        ("from typing import List\n\n\nx: List[int] = []\n", "UP006"),
        ("import torch\nimport json\n\n\nx = torch, json\n", "I001"),
        (f"x = '{'y' * 120}'\n", "E501"),
    ],
)
def test_ruff_finds_what_it_is_there_for(text, rule):
    done = run_ruff("--stdin-filename", "data/planted.py", "-", text=text)
    assert rule in done.stdout
    assert done.returncode == 1


def test_ruff_passes_a_program_that_prints():
    assert run_ruff("--stdin-filename", "tools/planted.py", "-", text='print("loss")\n').returncode == 0


def test_the_models_linter_finds_nothing():
    findings = judge(lint(ROOT), read_table(ROOT))
    assert not findings, "\n".join(findings)


MODEL = """from torch import nn
from transformers import PreTrainedModel


class Ross3DHead(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.proj = nn.Linear(768, config.hidden_size)
"""


@pytest.mark.parametrize("name", ["modeling_ross3d.py", "reconstruction_ross3d.py"])
def test_the_models_linter_reads_every_part_of_the_model(tmp_path, name):
    findings = lint(write_house(tmp_path, {name: MODEL}))
    assert [(finding["path"], finding["line"]) for finding in findings if finding["rule"] == "TRF024"] == [(name, 8)]


def test_the_table_switches_rules_off_and_notices_rows_nobody_needs():
    finding = {"path": "modeling_ross3d.py", "line": 8, "rule": "TRF024", "message": "TRF024: a width of 768"}
    assert judge([finding], {}) == ["modeling_ross3d.py:8: TRF024: a width of 768"]
    assert judge([finding], {"TRF024": "the width is the same in every checkpoint"}) == []
    assert "TRF041 is switched off, but no file needs that" in judge([], {"TRF041": "no branches"})[0]
