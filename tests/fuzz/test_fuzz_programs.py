"""Malformed command lines of the programs, run as a user runs them: one line on stderr, no traceback."""

import runpy
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ross3d.tests.fuzz.limits import limit_memory, limit_time, run_seeded
from ross3d.tests.tiny import get_checkpoint, get_rooms


ROOT = Path(__file__).resolve().parents[2]
WORDS = ["", " ", "-1", "0", "nan", "inf", "1e9", "2.5", "many", "true", "../../etc/passwd", "/dev/null", "/dev/zero",
         "~", "no/such/folder", "no-such-model", "\x00", "x" * 3000, "{}", "[1", "--", "-", "--output",
         "--no-such-option", "\ud800", "<script>", "%s", "*", "http://127.0.0.1:9/x"]  # fmt: skip


@cache
def get_commands() -> dict[str, tuple[str, list[str]]]:
    """Program -> its file or module, and a command line that is right but for the output, which is never reached."""
    checkpoint, rooms = str(get_checkpoint()), get_rooms()
    room = str(sorted((rooms / "val").iterdir())[0])
    return {
        "view": ("tools/view.py", [room, "--output", "OUT/page.html"]),
        "ask": ("tools/ask.py", [room, "--model", checkpoint, "--output", "OUT/ask.html", "--views", "2",
                                 "--max-new-tokens", "2", "--steps", "1", "How many chairs?"]),
        "eval": ("eval.py", ["--model", checkpoint, "--task", "rooms", "--data", str(rooms), "--output", "OUT/eval",
                             "--limit", "1", "--num_views", "2", "--max_new_tokens", "2", "--report", "false"]),
        # Its settings are spoiled in test_fuzz_files.py: most of these lines would train.
        "train": ("train.py", []),
        "prepare": ("ross3d.data.prepare", ["proposals", "--data", str(rooms), "--num-workers", "1"]),
        "convert": ("tools/convert.py", ["--from", checkpoint, "--to", "OUT/published", "--reverse"]),
        "push": ("tools/push.py", [checkpoint, "--to", "USER/NAME", "--dry-run", "OUT/pushed"]),
        "compare": ("tools/compare.py", [str(rooms), str(rooms), "--output", "OUT/compared"]),
        "calibrate": ("tools/calibrate.py", [str(rooms), "--model", checkpoint, "--data", str(rooms)]),
    }  # fmt: skip


def run_command(target: str, words: list[str], monkeypatch, capsys) -> tuple[int, str]:
    """Exit code and stderr of a program in this process, from an empty folder."""
    monkeypatch.setattr(sys, "argv", [target, *words])
    code = 0
    try:
        if target.endswith(".py"):
            runpy.run_path(str(ROOT / target), run_name="__main__")
        else:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return code, capsys.readouterr().err


@st.composite
def spoiled_words(draw, right: list[str]) -> list[str]:
    words = list(right)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, len(words) - 1)) if words else 0
        kind = draw(st.sampled_from(["replaced", "replaced", "replaced", "left out", "added", "doubled"]))
        if kind == "replaced" and words:
            words[place] = draw(st.sampled_from(WORDS))
        elif kind == "left out" and words:
            del words[place]
        elif kind == "added":
            words.insert(place, draw(st.sampled_from(WORDS)))
        elif words:
            words.insert(place, words[place])
    return words


@pytest.mark.slow
@pytest.mark.parametrize("program", ["view", "ask", "eval", "prepare", "convert", "push", "compare", "calibrate"])
@run_seeded(25, slow=8)
@given(data=st.data())
def test_command_lines(program, data, tmp_path_factory, monkeypatch, capsys):
    target, right = get_commands()[program]
    words = data.draw(spoiled_words(right))
    folder = tmp_path_factory.mktemp("out")
    monkeypatch.chdir(folder)
    words = [word.replace("OUT", str(folder)) for word in words]
    with limit_time(words), limit_memory():
        code, errors = run_command(target, words, monkeypatch, capsys)
    assert "Traceback" not in errors, (words, errors[-2000:])
    if code not in (0, 2):
        said = [line for line in errors.splitlines() if ": error: " in line]
        assert len(said) == 1 and len(said[0]) < 5000, (words, errors[-2000:])
        assert "unexpected" not in said[0], (words, said)


COMMANDS_WITH_FAULTS = [
    ("view", ["no/such/folder"], "no/such/folder"),
    ("ask", ["no/such/folder", "--model", "CHECKPOINT", "What?"], "no/such/folder"),
    ("eval", ["--model", "./absent", "--task", "rooms", "--data", "ROOMS", "--output", "OUT/e"], "absent"),
    ("train", ["absent.yaml"], "absent.yaml"),
    ("prepare", ["proposals", "--data", "absent"], "absent"),
    ("convert", ["--from", "./absent", "--to", "OUT/c"], "absent"),
    ("push", ["./absent", "--to", "USER/NAME"], "absent"),
    ("compare", ["absent", "also_absent", "--output", "OUT/c"], "absent"),
    ("calibrate", ["absent"], "absent"),
]


@pytest.mark.parametrize(("program", "words", "named"), COMMANDS_WITH_FAULTS, ids=lambda value: str(value)[:12])
def test_a_fault_is_one_line_that_names_it(program, words, named, tmp_path, monkeypatch, capsys):
    target = get_commands()[program][0]
    monkeypatch.chdir(tmp_path)
    places = {"OUT": str(tmp_path), "ROOMS": str(get_rooms()), "CHECKPOINT": str(get_checkpoint())}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    code, errors = run_command(target, words, monkeypatch, capsys)
    said = [line for line in errors.splitlines() if ": error: " in line]
    assert code == 1 and len(said) == 1 and named in said[0], errors
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".")]
