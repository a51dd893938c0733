"""Text, JSON, JSON lines and YAML: what is refused, with file and place, next to what is read."""

import os

import pytest

from ross3d.data import text_files
from ross3d.data.text_files import parse_json, parse_yaml, read_json, read_json_lines, read_text, read_yaml


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "file.json"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write


def test_json_is_read_with_a_byte_order_mark_pairs_of_surrogates_and_long_numbers(write):
    file = write(b'\xef\xbb\xbf{"a": ["\\ud83d\\ude00", ' + b"9" * 300 + b"]}")
    assert read_json(file, keys=["a"]) == {"a": ["\U0001f600", int("9" * 300)]}
    assert read_json(write("[1, 2]"), kind=list) == [1, 2]


@pytest.mark.parametrize(
    "content, problem",
    [
        ('{"a": 1,\n "b"', r"line 2 column 5"),
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("[" * 100_000, "too deep"),
        ("[1,\n  " + "7" * 301 + "]", "a whole number of 301 digits, at most 300 can be read: line 2 column 3"),
        ("[" + "7" * 5000 + "]", "a whole number of 5000 digits"),
        ('{"a": 1, "b": {"c": 2, "c": 3}}', "the key 'c' occurs twice in an object"),
        ('["chair \\ud800"]', r"a lone surrogate \(half of a character\), '\\ud800', in .*chair "),
    ],
)
def test_broken_json_names_file_and_place(write, content, problem):
    file = write(content)
    with pytest.raises(
        ValueError, match=rf"{file}: expected cameras, but .* not valid JSON \(.*{problem}.*\); copy it"
    ):
        read_json(file, "cameras", remedy="copy it")


def test_a_cut_line_has_one_line_number(write):
    with pytest.raises(
        ValueError, match=r"file.json:2: expected .*, but the file is not valid JSON \(Expecting .*: column 9\)"
    ):
        list(read_json_lines(write('{"a": 1}\n{"a": 2,\n')))


def test_text_that_is_not_utf_8_names_its_line(write):
    with pytest.raises(ValueError, match=r"file.json:3: expected a list, got bytes that are not UTF-8 \(byte 0xe9\)"):
        read_text(write(b"one\ntwo\ncaf\xe9"), "a list")
    with pytest.raises(ValueError, match=r"file.json:1: .*got UTF-16 text \(byte 0xff\); save it as UTF-8"):
        read_json(write("{}".encode("utf-16")))
    with pytest.raises(ValueError, match=r"file.json:2: .*not UTF-8 \(byte 0x80\)"):
        list(read_json_lines(write(b'{"a": 1}\n"\x80"\n')))


def test_what_is_no_regular_file_or_too_large_is_refused_before_it_is_read(tmp_path, write, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"absent.json does not exist; expected boxes"):
        read_json(tmp_path / "absent.json", "boxes")
    with pytest.raises(FileNotFoundError, match=r"file.json/below does not exist"):
        read_json(write("{}") / "below")
    with pytest.raises(ValueError, match=r"expected boxes, got a folder; give the path of a regular file"):
        read_json(tmp_path, "boxes")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"got a pipe, socket or device"):
        read_json(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"/dev/zero: expected UTF-8 text, got a pipe, socket or device"):
        read_text("/dev/zero")
    with pytest.raises(ValueError, match=r"'a\\x00b': expected UTF-8 text, got a path that cannot be read"):
        read_text("a\0b")
    with (tmp_path / "sparse.json").open("wb") as file:
        file.truncate(20_000_000_000)
    with pytest.raises(ValueError, match=r"sparse.json: .*of at most 537 MB, got 20000 MB, which is too large; check"):
        read_json(tmp_path / "sparse.json")
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 20)
    assert [number for number, _ in read_json_lines(write('"' + "a" * 17 + '"\n\n[1]'))] == [1, 3]
    with pytest.raises(ValueError, match=r"file.json:2: .*got a longer line; write one value per line"):
        list(read_json_lines(write('1\n"' + "a" * 18 + '"\n')))


def test_the_outermost_value_is_checked_by_kind_and_keys(write):
    with pytest.raises(
        ValueError, match=r"file.json: expected scores, got a list; check that it is the intended file"
    ):
        read_json(write("[1]"), "scores", kind=dict)
    with pytest.raises(ValueError, match=r"file.json: expected scores, got no settings; check that the file is"):
        read_json(write('{"scores": {}}'), "scores", keys=["scores", "settings"])
    kinds = {"null": r"nothing \(null\)", "true": "true or false", '"a"': "a text", "1.5": "a number"}
    for text, kind in kinds.items():
        with pytest.raises(ValueError, match=rf"file.json:2: expected records, got {kind}; check"):
            list(read_json_lines(write(f"{{}}\n{text}\n"), "records", kind=dict))
    with pytest.raises(ValueError, match=r"row 4: expected a JSON document, but the file is not valid JSON"):
        parse_json("{]", "row 4")


def test_yaml_is_read_with_references(write):
    text = "lr: &lr {low: 1.0e-5}\nparts: {a: {<<: *lr, low: 2.0}, b: *lr}\n"
    assert read_yaml(write(text, "run.yaml")) == {
        "lr": {"low": 1e-5},
        "parts": {"a": {"low": 2.0}, "b": {"low": 1e-5}},
    }


BOMB = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i}: &a{i} {{" + ", ".join(f"k{j}: *a{i - 1}" for j in range(9)) + "}\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("data: {root: a\nseed: 0", r"expected ',' or '}', but got ':', line 2 column 5"),
        ("seed: 0\nseed: 1", r"the key 'seed' occurs twice in a section, line 2 column 1"),
        (BOMB, "more than 100000 values after expanding references"),
        ("&a [*a]", "more than 100000 values"),
        ("a: *b", "found undefined alias 'b', line 1 column 4"),
        ("[" * 5000, "too deep"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
        ('a: !!int ""', "a value does not fit its tag"),
        ("a: !!bool maybe", "a value does not fit its tag"),
        ("a: 2026-99-99", "month must be in 1..12"),
        ("a: \x07", "unacceptable character #x0007"),
        ("a: " + "7" * 5000, "value has 5000 digits"),
    ],
)
def test_broken_yaml_names_file_and_place(write, text, problem):
    file = write(text, "run.yaml")
    with pytest.raises(
        ValueError, match=rf"{file}: expected a run, but the file is not valid YAML .*{problem}.*\); correct it"
    ):
        read_yaml(file, "a run")
    with pytest.raises(ValueError, match=rf"--key: .*{problem}"):
        parse_yaml(text, "--key")
