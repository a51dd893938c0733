"""Transformers' own suites on our classes, the failures that are expected, and the document that lists both."""

import re
import tempfile
from pathlib import Path

import pytest
import transformers

from ross3d.tests.suites.contract_listing import COMMAND, DOCUMENT, format_document, format_tests, read_tests
from ross3d.tests.suites.expected_failures import EXPECTED_FAILURES
from ross3d.tests.suites.library import NoTests, check_version, download_archive, prepare_tests, run_suites
from ross3d.tests.suites.outcomes import judge


# Of those that the library does not skip itself.
REQUIRED_SHARE = 0.97
FEWEST_CHECKS = {"Ross3DModelTest": 100, "Ross3DProcessorTest": 30, "Ross3DImageProcessingTest": 12}


@pytest.fixture(scope="module")
def outcomes():
    with tempfile.TemporaryDirectory() as folder:
        try:
            prepared = prepare_tests(Path(folder))
        except NoTests as error:
            pytest.skip(str(error))
        return run_suites(prepared)


def count(outcomes, suite: str, outcome: str) -> int:
    return sum(check.startswith(f"{suite}::") and found == outcome for check, (found, _) in outcomes.items())


@pytest.mark.slow
@pytest.mark.parametrize("suite", FEWEST_CHECKS)
def test_suite_runs(outcomes, suite):
    counts = {outcome: count(outcomes, suite, outcome) for outcome in ("passed", "failed", "skipped")}
    assert counts["passed"] + counts["failed"] >= FEWEST_CHECKS[suite], counts


@pytest.mark.slow
def test_every_failure_is_expected(outcomes):
    failures = {check: reason for check, (found, reason) in outcomes.items() if found == "failed"}
    surprises = {check: reason for check, reason in failures.items() if check not in EXPECTED_FAILURES}
    assert not surprises, "\n".join(f"{check}: {reason}" for check, reason in surprises.items())


@pytest.mark.slow
def test_every_expected_failure_fails(outcomes):
    """Checks that this machine skips, or does not have, may stay in the table; one that passes may not."""
    assert [check for check in EXPECTED_FAILURES if outcomes.get(check, ("failed",))[0] == "passed"] == []


@pytest.mark.slow
def test_nearly_all_checks_of_the_model_pass(outcomes):
    passed, failed = (count(outcomes, "Ross3DModelTest", outcome) for outcome in ("passed", "failed"))
    assert passed >= REQUIRED_SHARE * (passed + failed), (passed, failed)


def test_check_fails_with_any_of_its_parts():
    assert judge([(True, "failed", "a part"), (False, "passed", "")]) == ("failed", "a part")
    assert judge([(False, "failed", "itself")]) == ("failed", "itself")
    assert judge([(True, "skipped", "a part"), (True, "passed", ""), (False, "passed", "")]) == ("passed", "")
    assert judge([(True, "skipped", "no part"), (False, "passed", "")]) == ("skipped", "no part")
    assert judge([(False, "skipped", "no GPU")]) == ("skipped", "no GPU")
    assert judge([(False, "passed", "")]) == ("passed", "")


def test_document_is_the_listing_of_the_tests():
    assert DOCUMENT.read_text(encoding="utf-8") == format_document(), f"the tests have changed: run `{COMMAND}`"


def test_our_tests_in_the_reasons_exist():
    written = set(re.findall(r"^- `(test_\w+)`", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", " ".join(EXPECTED_FAILURES.values())))
    assert named and named <= written, named - written


CONTRACT_FILE = '''"""A file."""


# Loading


def test_one():
    """One loads.

    More about it.

    Library: test_a,
    test_b.
    """


# A comment on the next line is no section.
NUMBER = 3


@mark
def test_two():
    """Two loads."""


def help_tests():
    pass


# Saving


def test_three():
    """Three is saved.

    Library: test_c
    """
'''
LISTING = """
### `tests/test_contract_x.py`

#### Loading

- `test_one`: One loads. *Library:* `test_a`, `test_b`.
- `test_two`: Two loads.

#### Saving

- `test_three`: Three is saved. *Library:* `test_c`.
"""


def test_listing_of_a_file():
    assert format_tests("tests/test_contract_x.py", read_tests(CONTRACT_FILE)) == LISTING


@pytest.mark.parametrize("lost", ['    """Two loads."""\n', "# Loading\n"])
def test_tests_without_a_docstring_or_a_section_are_not_listed(lost):
    with pytest.raises(ValueError, match="test_(one|two): expected a docstring and a section above it"):
        read_tests(CONTRACT_FILE.replace(lost, "    pass\n" if lost.startswith(" ") else ""))


def test_another_version_of_the_library_is_refused(tmp_path):
    file = tmp_path / "src" / "transformers" / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text('__version__ = "4.0.0"\n')
    with pytest.raises(NoTests, match="holds transformers 4.0.0, installed is .* check out the tag v"):
        check_version(tmp_path)
    file.write_text(f'__version__ = "{transformers.__version__}"\n')
    check_version(tmp_path)


def test_archive_that_pip_cannot_find_is_a_reason_to_skip(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(NoTests, match="pip could not download the source archive of transformers=="):
        download_archive(tmp_path)
