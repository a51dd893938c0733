"""Every program looks at the place it is to write to before it works, and refuses an empty path."""

import pytest

from ross3d import eval as door
from ross3d.data.atomic import check_output_file, check_output_folder, hold_folder
from ross3d.data.prepare import __main__ as prepare
from ross3d.scenes import build
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.tools import ask, compare, convert, make_tiny, push, view


@pytest.fixture
def file(tmp_path):
    (tmp_path / "notes.md").write_text("mine")
    return tmp_path / "notes.md"


def test_folders_that_cannot_be_written_are_refused_with_their_option(file, tmp_path):
    check_output_folder(tmp_path / "a" / "b", "--output")
    assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())
    for path, reason in (
        (file, "this is a file"),
        (file / "x", "this is a file"),
        ("x" * 300, "name"),
    ):
        with pytest.raises(ValueError, match=rf"--output: expected a folder to write into, got .*: .*{reason}.*; cho"):
            check_output_folder(path, "--output")
    with (
        pytest.raises(ValueError, match="output folder: expected a folder to write into, got '/proc/x'"),
        hold_folder("/proc/x"),
    ):
        pass


def test_files_that_cannot_be_written_are_refused_with_their_option(file, tmp_path):
    check_output_file(tmp_path / "new" / "page.html", "--output", ".html")
    with pytest.raises(
        ValueError, match="--output: expected the name of a .html file, got .*notes.md'; choose another"
    ):
        check_output_file(file, "--output", ".html")
    assert file.read_text() == "mine" and (tmp_path / "new").is_dir()
    for path, reason in ((tmp_path, "this is a folder"), ("/dev/null", "this is a pipe, socket or device")):
        with pytest.raises(
            ValueError, match=f"--picture: expected a file to write, got .*: {reason}.*; choose another"
        ):
            check_output_file(path, "--picture", "")
    with pytest.raises(ValueError, match="expected a file to write, got .*: File name too long"):
        check_output_file(tmp_path / ("x" * 300), "--picture", "")


def test_no_file_of_a_scan_is_overwritten(tmp_path):
    """Neither by a page with a picture's name, nor by the record that is written next to a page."""
    picture, cameras = tmp_path / "frame-000000.color.png", tmp_path / "transforms.json"
    picture.write_bytes(b"pixels")
    cameras.write_text('{"frames": []}')
    scan = str(tmp_path)
    for program, words in ((ask.main, ["q", "--model", "m"]), (view.main, [])):
        for file in (picture, cameras, tmp_path / "walk.mp4"):
            with pytest.raises(ValueError, match="--output: expected the name of a .html file, got"):
                program([scan, *words, "--output", str(file)])
    with pytest.raises(ValueError, match="--output: expected no other file at .*transforms.json, where the answers"):
        ask.main([scan, "q", "--model", "m", "--output", str(tmp_path / "transforms.html")])
    record = tmp_path / "ask.json"
    record.write_text('{"answers": [], "scan_to_world": []}')
    ask.check_record_file(record)
    ask.check_record_file(tmp_path / "absent.json")
    assert picture.read_bytes() == b"pixels" and cameras.read_text() == '{"frames": []}'


def test_programs_refuse_their_output_before_they_work(file, tmp_path):
    # None of the inputs is there: what is told is the output.
    folder = "expected a folder to write into, got"
    programs = [
        (lambda: evaluate(file), f"--output: {folder}"),
        (lambda: build.main(["--output", str(file)]), f"--output: {folder}"),
        (lambda: make_tiny.main([str(file / "x")]), f"DIR: {folder}"),
        (lambda: compare.main(["a", "b", "--output", str(file)]), f"--output: {folder}"),
        (lambda: convert.main(["--from", "a", "--to", str(file / "x")]), f"--to: {folder}"),
        (lambda: push.main(["a", "--to", "u/n", "--dry-run", str(file / "x")]), f"--dry-run: {folder}"),
        (
            lambda: ask.main(["a", "q", "--model", "m", "--output", str(tmp_path)]),
            "--output: expected a file to write",
        ),
        (lambda: view.main(["a", "--output", str(tmp_path)]), "--output: expected a file to write, got"),
        (lambda: view.main(["a", "--picture", str(tmp_path)]), "--picture: expected a file to write, got"),
    ]
    for program, message in programs:
        with pytest.raises(ValueError, match=message):
            program()


def evaluate(output) -> None:
    words = ["--model", str(get_checkpoint()), "--task", "rooms", "--data", str(get_rooms()), "--output", str(output)]
    door.main(door.parse_arguments(words))


def test_folders_that_hold_something_else_are_refused(file, tmp_path):
    with pytest.raises(FileExistsError, match="expected a new or empty folder, or one of this program"):
        build.main(["--output", str(tmp_path), "--train", "1", "--val", "1"])
    with pytest.raises(FileExistsError, match="expected a new folder, found an existing one; choose"):
        make_tiny.main([str(get_rooms())])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]


@pytest.mark.parametrize(
    ("parse", "words"),
    [
        (door.parse_arguments, ["--model", "m", "--task", "rooms", "--data", "d", "--output", ""]),
        (door.parse_arguments, ["--model", "m", "--task", "rooms", "--output", "o", "--data", " "]),
        (build.main, ["--output", ""]),
        (make_tiny.main, [""]),
        (view.main, ["a", "--boxes", ""]),
        (prepare.parse_arguments, ["bev", "--data", ""]),
    ],
)
def test_an_empty_path_is_refused(parse, words, capsys):
    with pytest.raises(SystemExit):
        parse(words)
    assert "expected a path, got '" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--picture", "p.png"], ["--blind", "b"]])
def test_options_of_a_run_are_refused_for_a_scan(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"{words[0]}: expected an evaluated run, the only kind .* got a scan"):
        view.main([str(get_rooms()), *words])


@pytest.mark.parametrize("words", [["--axis-align", "a.txt"], ["--boxes", "b.json"], ["--rotate", "90"]])
def test_options_of_a_scan_are_refused_for_a_run(tmp_path, words):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"{words[0]}: expected a scan, the only kind .* got an evaluated run in"):
        view.main([str(tmp_path), *words])
