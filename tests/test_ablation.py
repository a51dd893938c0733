"""The ablation's harness: what its arms train, what is run again, and the tables that stand in the log."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from ross3d.bench import ablation
from ross3d.bench.ablation import ARMS, PAIRS, SCORES, Plan
from ross3d.data.annotations import find_annotations, load_annotations
from ross3d.training.arguments import read_run_arguments


ROOT = Path(__file__).resolve().parents[1]
PLAN = Plan("configs/tiny.yaml", steps=24, rows=6, warmup=3, train=20, val=3, rebuilt=2)


def make_line(arm: str, seed: int, value: float, psnr: float | None = None) -> dict:
    regions = {} if psnr is None else {"view": psnr, "bev_object": psnr - 5}
    return {
        "arm": arm, "seed": seed, "plan": asdict(PLAN), "scores": {name: value + i for i, name in enumerate(SCORES)},
        "psnr": {
            region: dict(zip(ablation.PREDICTORS, (level - i for i in range(4)), strict=True))
            for region, level in regions.items()
        },
    }  # fmt: skip


def write_lines(file: Path, lines: list[dict]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_rooms_with_and_without_questions(tmp_path):
    ablation.prepare_rooms(tmp_path, PLAN)
    ablation.prepare_rooms(tmp_path, PLAN)
    everything = {path.name for path in (tmp_path / "rooms" / "train").iterdir()}
    assert len(everything) == 20
    for labels, count in ((10, 2), (50, 10)):
        folder = tmp_path / f"rooms_{labels}"
        kept, others = ({path.name for path in (folder / name).iterdir()} for name in ("train", "unlabelled"))
        assert len(kept) == count and kept | others == everything and not kept & others
        assert {row.scene_id for row in load_annotations(find_annotations(folder, "train"))} == kept


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_is_a_run_of_as_many_steps(tmp_path, name):
    arm, file = ARMS[name], tmp_path / "config.yaml"
    settings = ablation.make_settings(arm, PLAN, 3, tmp_path / "out", tmp_path / "run", "cpu")
    file.write_text(yaml.safe_dump(settings))
    run = read_run_arguments(file)
    assert (run.seed, run.trainer["max_steps"], run.init_from) == (3, 24, str(tmp_path / "out" / "start_3"))
    # Without unlabelled rooms beside them a step has half of the rows where others have them.
    rows = {"text_10": 3, "text_50": 3}.get(name, 6)
    assert run.trainer["per_device_train_batch_size"] == rows and run.trainer["use_cpu"]
    assert run.data.unlabelled_share == (0.5 if name.startswith("both_") else 0.0)
    per_epoch = 20 * arm.labels // 100 * (2 if arm.unlabelled else 1)
    assert run.data.epochs * per_epoch >= 24 * rows
    assert any("reconstruction" in part for part in run.parts) == arm.rebuilds
    assert run.trainer["save_steps"] % run.trainer["logging_steps"] == 0


def test_what_has_its_line_is_not_run_again(tmp_path, monkeypatch):
    results = write_lines(tmp_path / "lines.jsonl", [make_line("text", 0, 50.0)])
    monkeypatch.setattr(ablation, "prepare_rooms", lambda output, plan: None)
    monkeypatch.setattr(ablation, "call", lambda command, log: 1.0)
    monkeypatch.setattr(
        ablation, "run_arm", lambda name, plan, seed, *_: make_line(name, seed, 1.0) | {"train_seconds": 1}
    )
    ablation.run(PLAN, tmp_path, results, 2, 2, ["text", "both"], "cpu")
    assert set(ablation.read_results(results, PLAN)) == {("text", 0), ("text", 1), ("both", 0), ("both", 1)}
    assert ablation.read_results(results)["text", 0]["scores"]["exact_match"] == 50.0


def test_a_job_that_fails_ends_the_series_and_keeps_the_lines(tmp_path, monkeypatch):
    def fail(name, plan, seed, *_):
        if name == "both":
            ablation.call(["python", "-c", "raise SystemExit(3)"], tmp_path / "log.txt")
        return make_line(name, seed, 1.0) | {"train_seconds": 1}

    results = tmp_path / "lines.jsonl"
    (tmp_path / "start_0").mkdir()
    monkeypatch.setattr(ablation, "prepare_rooms", lambda output, plan: None)
    monkeypatch.setattr(ablation, "run_arm", fail)
    with pytest.raises(RuntimeError, match=r"raise SystemExit\(3\) ended with 3; see .*log.txt"):
        ablation.run(PLAN, tmp_path, results, 1, 1, ["text", "both", "global"], "cpu")
    assert set(ablation.read_results(results)) == {("text", 0)}


def test_lines_of_another_plan_are_refused(tmp_path):
    lines = [make_line("text", 0, 50.0), make_line("both", 0, 51.0)]
    file = write_lines(tmp_path / "lines.jsonl", lines)
    assert len(ablation.read_results(file, PLAN)) == 2
    with pytest.raises(ValueError, match=r"expected lines of .*'steps': 25.*, got .*'steps': 24.*; choose another"):
        ablation.read_results(file, Plan(**asdict(PLAN) | {"steps": 25}))


def test_differences_are_paired_by_seed_and_intervals_are_students():
    """By hand: differences 1, 2, 3 have mean 2 and deviation 1; t of two degrees of freedom is 4.3027."""
    half = 4.3027 / 3**0.5
    text = ablation.summarize_differences([11.0, 22.0, 33.0], [10.0, 20.0, 30.0], 2)
    assert text == f"+2.00 [{2 - half:+.2f}, {2 + half:+.2f}]"
    assert ablation.summarize_differences([3.0, 3.2], [1.0, 1.0], 1) == "**+2.1 [+0.8, +3.4]**"
    assert ablation.summarize_differences([3.0], [1.0]) == "+2.0"
    assert ablation.summarize([1.0, 2.0, 3.0]) == "2.0 ± 1.0" and ablation.summarize([1.0]) == "1.0"


def test_tables_have_every_arm_and_pair_that_was_run(tmp_path):
    lines = [make_line("text", seed, 50.0 + seed) for seed in range(2)]
    lines += [make_line("per_view", seed, 53.0 + 3 * seed, 15.0 + seed) for seed in range(2)]
    lines += [make_line("both", 0, 60.0, 16.0), make_line("global", 1, 40.0, 14.0)]
    text = ablation.format_results(ablation.read_results(write_lines(tmp_path / "lines.jsonl", lines)))
    scores, differences, rebuilt, between = (table.splitlines() for table in text.split("\n\n"))
    assert scores[2].startswith("| `text` | text only | 2 | 50.5 ± 0.7 | 51.5 ± 0.7 |")
    assert [line.split("`")[1] for line in scores[2:]] == ["text", "per_view", "global", "both"]
    # Seed by seed: 3 and 5. Arms that share one seed have one difference without an interval.
    assert differences[2].startswith("| `per_view` - `text` | +4.0 [-8.7, +16.7] |")
    assert "| `both` - `text` | +10.0 |" in differences[4]
    assert len(differences) == 2 + 3
    # An arm is scored on what it learned to rebuild.
    rows = [tuple(cell.strip() for cell in line.split("|")[1:4]) for line in rebuilt[2:]]
    assert rows == [
        ("`per_view`", "masked views", "15.50"),
        ("`global`", "bird's-eye objects", "9.00"),
        ("`both`", "masked views", "16.00"),
        ("`both`", "bird's-eye objects", "11.00"),
    ]
    assert rebuilt[2].endswith(
        "| 15.50 | **+1.00 [+1.00, +1.00]** | **+2.00 [+2.00, +2.00]** | **+3.00 [+3.00, +3.00]** |"
    )
    assert between[2:] == ["| `both` - `per_view` | masked views | +1.00 |"]


def test_the_log_has_the_tables_of_the_measured_lines():
    """Each of five seeds of every arm of a series; every arm is in one; a difference has both of its arms."""
    assert {name for pair in PAIRS for name in pair} <= set(ARMS)
    log, measured = (ROOT / "docs" / "LOG.md").read_text(), set()
    for file in sorted((ROOT / "docs").glob("ablation*.jsonl")):
        results = ablation.read_results(file)
        arms = {name for name, _ in results}
        assert set(results) == {(name, seed) for name in arms for seed in range(5)}
        assert file.name in log
        for table in ablation.format_results(results).split("\n\n"):
            assert table in log
        assert all(re.fullmatch(r"[0-9a-f]{7,}", line["commit"]) for line in results.values())
        measured |= arms
    assert measured == set(ARMS)


@pytest.mark.slow
def test_a_series_runs_goes_on_and_ends_in_tables(tmp_path, capsys):
    """Arms in four steps: with a denoiser of other weights than their start, and with an encoder to learn from."""
    sizes = {"steps": 4, "rows": 2, "warmup": 20, "train": 20, "val": 12, "rebuilt": 1, "seeds": 1}
    command = ["run", "--output", str(tmp_path / "out"), "--results", str(tmp_path / "lines.jsonl")]
    command += [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    ablation.main([*command, "--arms", "text,both_10"])
    before = (tmp_path / "lines.jsonl").read_text()
    ablation.main([*command, "--arms", "text,both_10,pooled"])
    lines = (tmp_path / "lines.jsonl").read_text()
    assert lines.startswith(before) and len(lines.splitlines()) == 3
    ablation.main([*command, "--arms", "distill,distill_untrained"])
    trained, untrained = (json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()[-2:])
    assert trained["losses"].keys() == untrained["losses"].keys() == {"lm_loss", "grounding_loss", "distill_loss"}
    assert trained["losses"]["distill_loss"] != untrained["losses"]["distill_loss"]
    line = json.loads(lines.splitlines()[-1])
    # The last of four steps hides no view.
    assert line["arm"] == "pooled" and line["losses"].keys() == {"lm_loss", "grounding_loss", "bev_loss"}
    assert set(line["psnr"]) == set(ablation.REBUILT) and line["scores"].keys() >= SCORES.keys()
    capsys.readouterr()
    ablation.main(["table", "--results", str(tmp_path / "lines.jsonl")])
    assert "`both_10`" in capsys.readouterr().out
