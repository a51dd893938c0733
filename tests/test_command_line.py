"""How programs end: one line and a code; what numbers a command line takes."""

import argparse
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch

from ross3d.command_line import (
    COUNT,
    NUM_VIEWS,
    SEED,
    Number,
    add_debug,
    check_fields,
    describe_error,
    list_attributes,
    parse_path,
    run_program,
)


def run(main, capsys, *words: str, name: str = "tools/ask.py") -> tuple[object, str]:
    """The exit code of a program and what it wrote to stderr."""
    with pytest.raises(SystemExit) as end:
        run_program(main, [name, *words])
    return end.value.code, capsys.readouterr().err


def raise_error(error: BaseException):
    raise error


@pytest.mark.parametrize(
    "error, line",
    [
        (
            ValueError("boxes.json:\n  expected six numbers,  got 5."),
            "ask.py: error: boxes.json: expected six numbers, got",
        ),
        (FileNotFoundError(2, "No such file", "a.json"), "ask.py: error: [Errno 2] No such file: 'a.json'"),
        (MemoryError(), "ask.py: error: not enough memory (MemoryError)"),
        (EOFError(), "ask.py: error: EOFError"),
        (KeyError("scores"), "ask.py: error: KeyError: 'scores' (unexpected: please report it, with the output of"),
        (ValueError("x" * 100_000), "x ... (100000 characters; --debug shows all)"),
        (UnicodeEncodeError("utf-8", "a\ud800", 1, 2, "surrogates"), "can't encode character '\\ud800'"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(error, line, capsys):
    code, written = run(lambda: raise_error(error), capsys)
    assert code == 1 and line in written and written.count("\n") == 1 and len(written) < 2200


def test_other_ends_stay_what_they_are(capsys):
    assert run(lambda: raise_error(KeyboardInterrupt()), capsys) == (130, "")
    assert run(lambda: sys.exit(3), capsys) == (3, "")
    parser = argparse.ArgumentParser(prog="ask.py")
    parser.add_argument("--views", type=NUM_VIEWS)
    code, written = run(lambda: parser.parse_args(["--views", "2.5"]), capsys)
    assert code == 2
    assert written.endswith(
        "error: argument --views: expected a whole number from 1 to 10,000, got '2.5'; give another number\n"
    )


def test_debug_raises_the_error_itself_and_is_taken_out_of_the_command_line():
    words = ["ask.py", "scan", "--debug", "--views"]
    with pytest.raises(ValueError, match="as it is"):
        run_program(lambda: raise_error(ValueError("as it is")), words)
    assert words == ["ask.py", "scan", "--views"]
    parser = argparse.ArgumentParser()
    add_debug(parser)
    assert "show the traceback of errors and warnings" in parser.format_help()


def test_a_package_and_a_process_of_several_say_who_they_are(capsys, monkeypatch):
    _, written = run(lambda: raise_error(ValueError("no")), capsys, name="ross3d/data/prepare/__main__.py")
    assert written == "prepare: error: no\n"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(lambda: raise_error(ValueError("no")), capsys, name="train.py")[1] == "train.py, process 1: error: no\n"


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise ValueError(f"scene {index}: expected boxes,\n  got none.")


def test_an_error_of_a_data_loaders_worker_is_the_workers_own_line():
    with pytest.raises(ValueError) as found:
        list(torch.utils.data.DataLoader(Rows(), num_workers=1))
    assert "Original Traceback" in str(found.value)
    assert describe_error(found.value) == "scene 0: expected boxes, got none."


def test_a_program_in_its_own_process(tmp_path):
    (tmp_path / "program.py").write_text(
        "import warnings\nfrom ross3d.command_line import run_program\n"
        "def main():\n    warnings.warn('depth is\\n  sparse')\n    open('absent.json')\n"
        "if __name__ == '__main__':\n    run_program(main)\n"
    )
    command = [sys.executable, str(tmp_path / "program.py")]
    environment = os.environ | {"PYTHONWARNINGS": "default"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "program.py: warning: depth is sparse",
        "program.py: error: [Errno 2] No such file or directory: 'absent.json'",
    ]
    debug = subprocess.run([*command, "--debug"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert debug.returncode == 1 and "Traceback (most recent call last)" in debug.stderr


@pytest.fixture(autouse=True)
def keep_warning_format():
    given = warnings.formatwarning
    yield
    warnings.formatwarning = given


@pytest.mark.parametrize(
    "rule, right, wrong",
    [
        (NUM_VIEWS, [1, 32, 10_000], [0, -1, 2.0, 2.5, "32", True, None, 10_001, float("nan"), 10**400]),
        (SEED, [0, 2**32 - 1], [-1, 2**32, 0.0, "abc"]),
        (Number(least=0), [0, 0.0, 1e-5, 7], [-1e-9, float("nan"), float("inf"), "1e-5", False, 10**400, [1]]),
        (Number(above=0, most=1), [1e-9, 1], [0, 1.0001]),
        (Number(least=0, below=1), [0, 0.999], [1, -0.1]),
    ],
)
def test_numbers_follow_their_rule(rule, right, wrong):
    for value in right:
        rule.require("data.value", value)
        assert rule(str(value)) == value
    for value in wrong:
        with pytest.raises(
            ValueError, match=r"data.value: expected a (whole|finite) number .*, got .*; correct the number"
        ):
            rule.require("data.value", value)


@dataclass
class Settings:
    """Settings of a program.

    Attributes:
        count, other_count (`int`): how
            many.
        name (`str`, *optional*): what it is called.
    """

    count: int = 3
    other_count: int | None = None
    name: str | None = None
    blind: bool = False
    output: Path = Path("page.html")
    mode: Literal["fast", "exact"] = "fast"
    words: list[str] = field(default_factory=list)
    rotate: str | int | None = None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "--count: expected a whole number of at least 1, got 0; correct the number"),
        ({"other_count": 2.0}, "--other-count: expected a whole number, got 2.0"),
        ({"name": " "}, "--name: expected a non-blank string, got ' '; correct the value"),
        ({"blind": "maybe"}, "--blind: expected true or false, got 'maybe'; correct the value"),
        ({"output": 3}, "--output: expected a path, got 3; correct the value"),
        ({"mode": "slow"}, r"--mode: expected one of \('fast', 'exact'\), got 'slow'"),
        ({"words": ["a", ""]}, r"--words: expected a list of strings, got \['a', ''\]"),
    ],
)
def test_fields_are_of_their_type(given, message):
    check_fields(Settings(name="a", words=["b"], rotate=90), "--", {"count": COUNT})
    with pytest.raises(ValueError, match=message):
        check_fields(Settings(**given), "--", {"count": COUNT})


def test_help_is_what_the_class_says_of_its_fields():
    assert list_attributes(Settings) == {
        "count": "how many.",
        "other_count": "how many.",
        "name": "what it is called.",
    }


@pytest.mark.parametrize("scheme", ["http", "HTTPS", "ftp", "s3", "hf", "gs"])
def test_addresses_are_no_paths(capsys, scheme):
    parser = argparse.ArgumentParser(prog="view.py")
    parser.add_argument("path", type=parse_path)
    parser.add_argument("--boxes", type=parse_path)
    address = f"{scheme}://x.org/scan.mp4"
    for words, name in (([address], "path"), (["scan", "--boxes", address], "--boxes")):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        line = f"argument {name}: expected a path, got the address '{address}'; download it, and give the path of"
        assert line in capsys.readouterr().err
    with pytest.raises(argparse.ArgumentTypeError, match="'file:///tmp/x'; give the path that follows file://"):
        parse_path("file:///tmp/x")


@pytest.mark.parametrize("text", ["scans/a:b", "a:/b", "C:/scans", "./http:/x", "scans/s3"])
def test_paths_with_colons_stay_paths(text):
    assert parse_path(text) == Path(text)
