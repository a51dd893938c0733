"""Every case of every recorded set: all values compared, or listed with a reason."""

import fnmatch
import hashlib

import pytest

from ross3d.tests.parity import compare_geometry, compare_model, compare_reconstruction
from ross3d.tests.parity.build import Recorded
from ross3d.tests.parity.golden import DEFAULT_GOLDENS, GoldenSet, get_goldens_folder, list_leaves, list_tensor_sets
from ross3d.tests.parity.tables import BESIDE_CASES, INPUTS, LISTED


pytestmark = pytest.mark.parity

GOLDENS = get_goldens_folder()
SETS = [GoldenSet(path) for path in list_tensor_sets(GOLDENS)]
ABSENT = pytest.param(None, None, marks=pytest.mark.skip(reason=f"no recorded sets in {GOLDENS} (ROSS3D_GOLDENS)"))
COMPARISONS = {
    name.removeprefix("compare_"): function
    for module in (compare_geometry, compare_model, compare_reconstruction)
    for name, function in vars(module).items()
    if name.startswith("compare_") and function.__module__ == module.__name__
}
# Values compared, inputs and listed ones of the sets that we know, by the beginning of their index's sha256.
KNOWN_COUNTS = {"1cc9a8d845617f92": (831, 66, 84)}
CASES = [pytest.param(golden, name, id=f"{golden.name}-{name}") for golden in SETS for name in golden.index["cases"]]


@pytest.fixture(scope="module")
def get_recorded():
    """The model and inputs of a set, made once."""
    made: dict[str, Recorded] = {}

    def get(golden: GoldenSet) -> Recorded:
        return made.setdefault(str(golden.path), Recorded(golden))

    return get


@pytest.mark.parametrize(("golden", "name"), CASES or [ABSENT])
def test_case(golden: GoldenSet, name: str, get_recorded, record_property):
    assert name in COMPARISONS, f"no comparison is written for the recorded case {name}"
    with golden.get_case(name) as case:
        COMPARISONS[name](get_recorded(golden), case)
    inputs, listed = list_leaves(name, case.leaves)
    # Leaving the case has shown that nothing is left over; here the sum of the three.
    assert len(case.deviations) + len(inputs) + len(listed) == len(case.leaves)
    record_property("compared", len(case.deviations))
    record_property("worst", max(case.deviations.items(), key=lambda item: item[1], default=None))


@pytest.mark.parametrize(
    "golden", [pytest.param(golden, id=golden.name) for golden in SETS] or [pytest.param(None, marks=ABSENT.marks)]
)
def test_every_file_and_value_belongs_to_a_compared_case(golden: GoldenSet):
    """The number of values that the cases compare is that of the index, less inputs and listed ones."""
    cases = {name: golden.get_case(name) for name in golden.index["cases"]}
    tensors = sum(len(record["tensors"]) for record in golden.index["cases"].values())
    assert sum(len(case.tensors) for case in cases.values()) == tensors
    files = {record["file"] for record in golden.index["cases"].values()} | {golden.config["weights_file"]}
    assert {path.name for path in golden.path.glob("*.safetensors")} == files
    excused = {name: list_leaves(name, case.leaves) for name, case in cases.items()}
    compared = {name: len(cases[name].leaves) - sum(map(len, tables)) for name, tables in excused.items()}
    assert all(count > 0 for count in compared.values()), f"cases of which nothing is compared: {compared}"
    counts = sum(compared.values()), *(sum(map(len, kind)) for kind in zip(*excused.values(), strict=True))
    known = hashlib.sha256((golden.path / "index.json").read_bytes()).hexdigest()[:16]
    assert counts == KNOWN_COUNTS.get(known, counts)
    if known in KNOWN_COUNTS:
        assert golden.index.keys() - {"cases"} == BESIDE_CASES.keys()


def test_rows_of_the_tables_fit_something():
    """A row that excuses nothing in the sets beside the checkout is stale."""
    sets = [GoldenSet(path) for path in list_tensor_sets(DEFAULT_GOLDENS)]
    if not sets:
        pytest.skip(f"no recorded sets in {DEFAULT_GOLDENS}")
    leaves = [
        f"{name}:{leaf}" for golden in sets for name in golden.index["cases"] for leaf in golden.get_case(name).leaves
    ]
    stale = [pattern for pattern in INPUTS | LISTED if not fnmatch.filter(leaves, pattern)]
    assert not stale, f"rows of tables.py that fit no recorded value: {stale}"
