"""Writes `docs/CONTRACT_TESTS.md` from the tests themselves: `python -m ross3d.tests.suites.contract_listing`.

The tests are those of `tests/test_contract_*.py`. The first line of a docstring says what the test shows; a paragraph
`Library: test_a, test_b` names the checks of Transformers that it stands for. A comment between two empty lines begins
a section.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from ross3d.tests.suites.expected_failures import EXPECTED_FAILURES
from ross3d.tests.suites.library import ROOT


DOCUMENT = ROOT / "docs" / "CONTRACT_TESTS.md"
COMMAND = "python -m ross3d.tests.suites.contract_listing"
HEAD = f"""# Transformers' own test suites

<!-- Written by `{COMMAND}`; edit the tests, not this file. -->

Every model in Transformers passes the same test suites. The installed library does not contain them. A slow test
therefore downloads the source archive of the installed version with pip and runs its suites, unchanged, on
`Ross3DModel`, `Ross3DForConditionalGeneration`, `Ross3DConfig`, `Ross3DProcessor` and `Ross3DImageProcessor`:

```bash
make test-library
```

`tests/suites/model_suite.py` and `tests/suites/processor_suite.py` override only what the suites require of every
model: config, inputs, parts of a processor. If pip finds no archive, the test is skipped and gives the reason.
`ROSS3D_LIBRARY_SOURCE` can name an archive instead, an unpacked archive, or a clone of the library at the same
version. Checks that the library itself skips (no GPU, no flash attention, no experts, no videos) do not count. At
least 97 % of the other checks of model and generation must pass.

The archive lacks `GenerationTesterMixin`, `ExportTesterMixin` and `VLMModelTest`, which are only in the library's
repository: with a clone of it they run as well. Our own tests, [listed below](#our-own-tests), run everywhere and
make the same checks. The library runs its suites for training, tensor parallelism and FSDP for no model with images.

After a change of these tests, write this file again:

```bash
{COMMAND}
```

## Checks that fail, and why

The test fails if another check fails, or if one of these passes.

| check | reason |
|---|---|
"""
OWN_TESTS = """
## Our own tests

*Library* names the checks of Transformers that a test stands for.
"""


@dataclass(frozen=True)
class ContractTest:
    section: str
    name: str
    summary: str
    library: tuple[str, ...]


def find_sections(text: str) -> dict[int, str]:
    """Comments between two empty lines: line number -> title."""
    lines = ["", *text.splitlines(), ""]
    return {
        number: line.removeprefix("# ")
        for number, line in enumerate(lines)
        if line.startswith("# ") and not lines[number - 1] and not lines[number + 1]
    }


def read_tests(text: str) -> list[ContractTest]:
    """The tests of a file, in order.

    Raises:
        ValueError: for a test without a docstring, or before the first section.
    """
    sections, tests = find_sections(text), []
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        docstring = ast.get_docstring(node)
        titles = [title for number, title in sections.items() if number < node.lineno]
        if not docstring or not titles:
            raise ValueError(
                f"{node.name}: expected a docstring and a section above it (`# Title` between empty lines)"
            )
        stands_for = re.search(r"^Library: (.+?)(?=\n\n|\Z)", docstring, flags=re.MULTILINE | re.DOTALL)
        library = re.findall(r"\w+", stands_for[1]) if stands_for else []
        tests.append(ContractTest(titles[-1], node.name, docstring.splitlines()[0], tuple(library)))
    return tests


def format_tests(name: str, tests: list[ContractTest]) -> str:
    """A heading for the file, one for each section, and one item a test."""
    lines, section = [f"\n### `{name}`\n"], None
    for test in tests:
        if test.section != section:
            section = test.section
            lines.append(f"\n#### {section}\n\n")
        library = f" *Library:* {', '.join(f'`{check}`' for check in test.library)}." if test.library else ""
        lines.append(f"- `{test.name}`: {test.summary}{library}\n")
    return "".join(lines)


def format_document(root: Path = ROOT) -> str:
    rows = "".join(f"| `{check}` | {reason} |\n" for check, reason in EXPECTED_FAILURES.items())
    files = sorted((root / "tests").glob("test_contract_*.py"))
    listings = [format_tests(f"tests/{file.name}", read_tests(file.read_text(encoding="utf-8"))) for file in files]
    return HEAD + rows + OWN_TESTS + "".join(listings)


if __name__ == "__main__":
    DOCUMENT.write_text(format_document(), encoding="utf-8")
