"""The recorded sampler by its properties: one task a step, what is dropped. Ours keeps steps apart and drops none."""

import json
from collections import Counter

import numpy as np
import pytest

from ross3d.data.rows import PlannedRow, order_rows
from ross3d.tests.parity.golden import get_goldens_folder


pytestmark = pytest.mark.parity

FILE = get_goldens_folder() / "metrics" / "sampler.json"
GROUNDING = ("scanrefer", "multi3drefer")


def test_steps_of_one_task_and_what_is_dropped():
    if not FILE.is_file():
        pytest.skip(f"no recorded {FILE.name} in {FILE.parent} (environment variable ROSS3D_GOLDENS)")
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    compared = 0
    for case in golden["cases"]:
        names = [name.lower() for name, _ in case["samples"]]
        tasks = [golden["task_ids"][name] for name in names]
        block = case["batch_size"] * case["world_size"]
        expected = case["expected"]
        # Published: steps of one task; of every task the last block, however full, is left out.
        assert all(len({tasks[index] for index in step}) == 1 for step in expected["megabatches"])
        dropped = sum((count - 1) % block + 1 for count in Counter(tasks).values())
        assert expected["num_dropped"] == dropped == len(tasks) - len(expected["indices"])
        # Ours: every row once; grounding rows in steps of their own, but for what is left over of both.
        rows = [
            PlannedRow(place, 0, (0,), num_tokens=length, grounds=name in GROUNDING)
            for place, (name, (_, length)) in enumerate(zip(names, case["samples"], strict=True))
        ]
        ordered = order_rows(rows, block, True, np.random.default_rng(case["seed"]))
        assert sorted(row.scene for row in ordered) == list(range(len(rows)))
        counts = Counter(row.grounds for row in rows)
        steps = [ordered[start : start + block] for start in range(0, len(ordered), block)]
        whole = sum(count // block for count in counts.values())
        assert all(len({row.grounds for row in step}) == 1 for step in steps[:whole])
        compared += len(rows)
    assert compared > 0
