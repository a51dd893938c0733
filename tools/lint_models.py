"""Lint the shipped files with the linter that Transformers runs over its own models.

    python -m ross3d.tools.lint_models

Disabled rules are listed in `pyproject.toml`, `[tool.ross3d.mlinter.off]`, with their reasons; a row that disables
nothing is itself an error. The linter goes by file names, so the parts of the model in other files than
`modeling_ross3d.py` are presented to it as modeling files.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
KNOWN_PREFIXES = ("configuration_", "modeling_", "processing_")


def lint(root: Path) -> list[dict]:
    """Findings of the linter over the shipped files of `root`: path, line, rule, message."""
    with tempfile.TemporaryDirectory() as folder:
        model_folder = Path(folder) / "ross3d"
        model_folder.mkdir()
        origins = {}
        for path in sorted(root.glob("*_ross3d.py")):
            name = path.name if path.name.startswith(KNOWN_PREFIXES) else f"modeling_{path.name}"
            shutil.copy(path, model_folder / name)
            origins[name] = path.name
        report = Path(folder) / "report.json"
        command = [
            sys.executable,
            "-m",
            "mlinter",
            "--no-cache",
            "--no-progress",
            "--output-json",
            report,
            model_folder,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if not report.exists():
            raise RuntimeError(f"mlinter ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        findings = json.loads(report.read_text())["findings"]
    for finding in findings:
        finding["path"] = origins[Path(finding["path"]).name]
    return findings


def judge(findings: list[dict], off: dict[str, str]) -> list[str]:
    """Lines to print: findings of enabled rules, and rows of the table that match no finding."""
    lines = [f"{f['path']}:{f['line']}: {f['message']}" for f in findings if f["rule"] not in off]
    unused = sorted(set(off) - {finding["rule"] for finding in findings})
    return lines + [
        f"pyproject.toml: {rule} is switched off, but no file needs that; remove the row" for rule in unused
    ]


def read_table(root: Path) -> dict[str, str]:
    """The disabled rules, with their reasons."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["tool"]["ross3d"]["mlinter"]["off"]


def main() -> int:
    lines = judge(lint(ROOT), read_table(ROOT))
    for line in lines:
        print(line)
    print(f"mlinter: {len(lines)} findings" if lines else "mlinter: clean")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
