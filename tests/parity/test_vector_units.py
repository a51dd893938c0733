"""The recorded cases pass with the kernels of other CPUs, whose vector units change the last digits of results."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ross3d.tests.parity.fabricate_set import fabricate_set
from ross3d.tests.parity.golden import get_goldens_folder, list_tensor_sets
from ross3d.tests.parity.test_other_sizes import SIZES


pytestmark = [pytest.mark.parity, pytest.mark.slow]

PARITY = Path(__file__).resolve().parent
# A CPU without the unit that is asked for takes the best one it has.
UNITS = [("default", "SSE4_2"), ("avx2", "AVX2"), ("avx512", "AVX512")]


@pytest.mark.parametrize(("torch_unit", "mkl_unit"), UNITS)
@pytest.mark.parametrize("kind", ["recorded", "made"])
def test_recorded_cases_pass_with_the_kernels_of(kind, torch_unit, mkl_unit, tmp_path):
    folder = get_goldens_folder() if kind == "recorded" else tmp_path
    if kind == "made":
        for sizes in SIZES:
            fabricate_set(folder, sizes)
    elif not list_tensor_sets(folder):
        pytest.skip(f"no recorded sets in {folder} (ROSS3D_GOLDENS)")
    environment = {
        "ROSS3D_GOLDENS": str(folder),
        "ATEN_CPU_CAPABILITY": torch_unit,
        "MKL_ENABLE_INSTRUCTIONS": mkl_unit,
        "OMP_NUM_THREADS": "1",
    }
    tests = [str(PARITY / name) for name in ("test_recorded_cases.py", "test_converted_checkpoint.py")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=PARITY.parents[1], env=os.environ | environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:]
    assert " passed" in run.stdout
