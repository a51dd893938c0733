"""Transformers' own test suites, unchanged, run on our classes.

The installed library has no tests. Its source archive on the package index has those that all models share, and lacks
four modules that they import; `add_missing_modules` writes what stands in for these.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import transformers


ROOT = Path(__file__).resolve().parents[2]
SUITES = (Path(__file__).with_name("model_suite.py"), Path(__file__).with_name("processor_suite.py"))
# A folder with the library's source (an unpacked archive, or a clone, which has all suites), or the archive itself.
SOURCE_VARIABLE = "ROSS3D_LIBRARY_SOURCE"
WANTED = ("tests/*.py", "tests/generation/*.py", "tests/exporters/*.py", "tests/utils/test_configuration_utils.py")

NO_CHECKS = "class {name}:\n    pass\n"
# The archive's checks name pictures by address. Here they are drawn, so that no check needs a network.
PICTURES_BY_ADDRESS = '''
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def url_to_local_path(url, return_url_if_not_found=True):
    """A picture of 48 x 64 pixels that depends on the address alone; addresses of other things stay as they are."""
    if not url.split("?")[0].lower().endswith((".jpg", ".jpeg", ".png")):
        return url
    seed = zlib.crc32(url.encode())
    path = Path(tempfile.gettempdir()) / f"ross3d-picture-{seed}.png"
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)
'''
STAND_INS = {
    "tests/__init__.py": "",
    "tests/exporters/test_export.py": NO_CHECKS.format(name="ExportTesterMixin"),
    "tests/generation/test_utils.py": NO_CHECKS.format(name="GenerationTesterMixin"),
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


class NoTests(Exception):
    """The library's tests cannot be had; the message says why."""


def download_archive(folder: Path) -> Path:
    """Fetch the source archive of the installed version with pip into `folder`.

    Raises:
        NoTests: where pip finds no index or no archive.
    """
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "transformers", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired as error:
        raise NoTests(f"pip did not download the source archive of {requirement} within 300 s") from error
    archives = sorted(folder.glob("transformers-*.tar.gz"))
    if done.returncode or not archives:
        lines = done.stderr.strip().splitlines() or ["no archive came"]
        raise NoTests(f"pip could not download the source archive of {requirement}: {lines[-1]}")
    return archives[0]


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the archive into `folder`; returns the folder that holds `tests` and `src`."""
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return next(folder.glob("transformers-*"))


def check_version(source: Path) -> None:
    """Refuse tests of another version than the installed one.

    Raises:
        NoTests: with both versions.
    """
    text = (source / "src" / "transformers" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"', text, flags=re.MULTILINE)
    if found is None or found[1] != transformers.__version__:
        raise NoTests(
            f"{source} holds transformers {found and found[1]}, installed is {transformers.__version__}; check out"
            f" the tag v{transformers.__version__}"
        )


def prepare_tests(folder: Path) -> Path:
    """Put the library's tests into `folder / "library"`, from where the suites run.

    Raises:
        NoTests: where they cannot be had.
    """
    source = Path(os.environ.get(SOURCE_VARIABLE) or download_archive(folder))
    if source.is_file():
        source = unpack(source, folder)
    check_version(source)
    prepared = folder / "library"
    for pattern in WANTED:
        for file in source.glob(pattern):
            target = prepared / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    add_missing_modules(prepared)
    return prepared


def add_missing_modules(prepared: Path) -> None:
    """Write what the archive's tests import and the archive leaves out: suites without checks, and pictures."""
    for name, text in (STAND_INS | {"utils/fetch_hub_objects_for_ci.py": PICTURES_BY_ADDRESS}).items():
        file = prepared / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")


def run_suites(prepared: Path) -> dict[str, tuple[str, str]]:
    """Run every suite in a process of its own: `Class::check` -> (passed, failed or skipped; the reason)."""
    outcomes = prepared / "outcomes.json"
    paths = [str(prepared), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "ross3d.tests.suites.outcomes", str(outcomes), *map(str, SUITES)],
        cwd=prepared,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert outcomes.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    return {check: tuple(found) for check, found in json.loads(outcomes.read_text(encoding="utf-8")).items()}
