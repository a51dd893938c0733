"""Which recorded sets there are, and which of them a test reads."""

import json

import pytest

from ross3d.tests.parity.golden import get_goldens_folder, list_tensor_sets


pytestmark = pytest.mark.parity

# Folders of recorded JSON files, one a benchmark or a system, that the parity tests do not compare.
ELSEWHERE = {
    "metrics": "one JSON a benchmark or step, compared by test_recorded_metrics.py, which lists those of other tests",
    "systems": "geometry encoders, fusion blocks and alignment losses of other systems, which are not written yet",
}


def list_folders() -> list:
    folder = get_goldens_folder()
    folders = sorted(path for path in folder.glob("*") if path.is_dir()) if folder.is_dir() else []
    skip = pytest.mark.skip(reason=f"no recorded sets in {folder} (ROSS3D_GOLDENS)")
    return [pytest.param(path, id=path.name) for path in folders] or [pytest.param(None, marks=skip)]


@pytest.mark.parametrize("folder", list_folders())
def test_every_folder_is_compared_or_accounted_for(folder):
    """A folder is a set of cases, or is listed with a reason; nothing is passed over in silence."""
    if list_tensor_sets(folder):
        return
    recorded = sorted(path.name for path in folder.glob("*.json"))
    assert recorded, f"{folder.name}: expected index.json or one JSON a topic, got neither"
    assert all(isinstance(json.loads((folder / name).read_text()), dict | list) for name in recorded)
    assert folder.name in ELSEWHERE, f"{folder.name}: no test reads {recorded}; compare them or say why not"
    pytest.skip(f"{folder.name}/ ({len(recorded)} files) not compared here: {ELSEWHERE[folder.name]}")
