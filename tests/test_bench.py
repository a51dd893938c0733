"""The harnesses run, on sizes that say nothing about speed: their figures have the names that documents quote."""

import json
import math

import pytest

from ross3d.bench import answer, checkouts, decode, distillation, geometry, losses, plain, processor, train_step


RUNS = {
    "answer": (lambda: answer.run(2, 3, 1, 2, 2), ()),
    "decode": (lambda: decode.run(2, 1), ()),
    "distillation": (lambda: distillation.run(3, 2, 1), ("files_over_text", "online_over_text")),
    "geometry": (lambda: geometry.run(2, 5, 1), ()),
    "losses": (lambda: losses.run(4, 1), ("published_over_ours", "share")),
    "plain": (lambda: plain.run(2, 1), ("step_over_llava", "step_over_qwen", "read_over_llava", "read_over_qwen")),
    "processor": (lambda: processor.run(3, 1), ()),
    "train_step": (lambda: train_step.run(4, 2, 1, False), ("separate_over_packed",)),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_harness_runs(name):
    """Each checks its own results before it prints ratios of times."""
    run, ratios = RUNS[name]
    figures = json.loads(json.dumps(run()))
    assert figures["bench"] == name and figures["commit"]
    for ratio in ratios:
        assert 0 < figures[ratio]["min"] <= figures[ratio]["median"] <= figures[ratio]["max"] < math.inf


def test_checkouts_are_timed_in_turn(tmp_path):
    """The new script runs on the code of both; the ratio is of each round's two figures."""
    for name, seconds in (("old", 2), ("new", 3)):
        folder = tmp_path / name / "ross3d"
        (folder / "bench").mkdir(parents=True)
        (folder / "__init__.py").write_text(
            f"line = dict(commit={name!r}, hardware='', threads=1, seconds={seconds})\n"
        )
    old, new = (tmp_path / name / "ross3d" for name in ("old", "new"))
    (new / "bench" / "both.py").write_text("import json, ross3d\nprint('noise')\nprint(json.dumps(ross3d.line))\n")
    figures = checkouts.run(old, new, "seconds", 2, "bench/both.py", [])
    assert figures["new_over_old"] == {"min": 1.5, "median": 1.5, "max": 1.5}
    assert (figures["old"], figures["new"], figures["seconds"]) == ("old", "new", {"old": 2.0, "new": 3.0})
    with pytest.raises(RuntimeError, match="expected a run on .*, got an error: .*No such file"):
        checkouts.run(old, new, "seconds", 1, "bench/absent.py", [])
