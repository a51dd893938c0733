"""Transformers' own suites on our classes: what fails is listed with its reason in `docs/CONTRACT_TESTS.md`."""

import re
import tempfile
from pathlib import Path

import pytest
import transformers

from ross3d.tests.suites.library import (
    ROOT,
    TABLE,
    NoTests,
    check_version,
    download_archive,
    prepare_tests,
    read_expected_failures,
    run_suites,
)
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


@pytest.fixture(scope="module")
def expected():
    return read_expected_failures(TABLE.read_text(encoding="utf-8"))


def count(outcomes, suite: str, outcome: str) -> int:
    return sum(check.startswith(f"{suite}::") and found == outcome for check, (found, _) in outcomes.items())


@pytest.mark.slow
@pytest.mark.parametrize("suite", FEWEST_CHECKS)
def test_suite_runs(outcomes, suite):
    counts = {outcome: count(outcomes, suite, outcome) for outcome in ("passed", "failed", "skipped")}
    assert counts["passed"] + counts["failed"] >= FEWEST_CHECKS[suite], counts


@pytest.mark.slow
def test_every_failure_is_expected(outcomes, expected):
    failures = {check: reason for check, (found, reason) in outcomes.items() if found == "failed"}
    surprises = {check: reason for check, reason in failures.items() if check not in expected}
    assert not surprises, "\n".join(f"{check}: {reason}" for check, reason in surprises.items())


@pytest.mark.slow
def test_every_expected_failure_fails(outcomes, expected):
    """A row that no longer tells the truth goes; checks that this machine skips, or does not have, keep theirs."""
    assert [check for check in expected if outcomes.get(check, ("failed",))[0] == "passed"] == []


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


def test_tests_that_the_document_names_exist():
    """Those that stand for checks of the library, in the last column of its tables."""
    rows = re.findall(r"^\| .+ \| (.*`test_\w+`.*) \|$", TABLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(test_\w+)`", row)}
    files = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").glob("test_contract_*.py")]
    written = {name for text in files for name in re.findall(r"^def (test_\w+)", text, flags=re.MULTILINE)}
    assert len(named) > 20 and named <= written, named - written


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


def test_rows_of_the_table_are_read():
    text = "| check | reason |\n|---|---|\n| `Suite::test_a`, `Suite::test_b` | both for one |\n| `test_c` | ours |\n"
    assert read_expected_failures(text) == {"Suite::test_a": "both for one", "Suite::test_b": "both for one"}
    with pytest.raises(AssertionError, match="two rows"):
        read_expected_failures(text + "| `Suite::test_a` | again |\n")
