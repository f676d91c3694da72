"""Inputs that once broke the product, in a folder of cases: what each must end in stands beside it.

A case's `case.json` has a command, run by a shell in the project's root, and what is expected: exit
statuses, files that must be there or unchanged, words that must not be printed. A `check.py` beside
it looks at values.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CASES = ROOT.parent / "shared" / "cases"
FOLDERS = sorted(path.parent for path in CASES.glob("*/case.json"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDERS, reason="needs the folder of cases beside the project"),
]


def ran(command: str, environment: dict[str, str], here: Path) -> subprocess.CompletedProcess[str]:
    """A shell command with this Python as `python`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = os.environ | environment | {"PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", command], cwd=here, env=variables, capture_output=True, text=True
    )


def allowed(expected: dict[str, Any]) -> set[int]:
    """The exit statuses that a case takes."""
    found = {int(x) for x in re.findall(r"\b[0-9]\b", str(expected.get("exit", "")))}
    return found | ({2} if "or" in expected else set())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_case_ends_as_it_must(folder: Path, goldens: Path, tmp_path: Path) -> None:
    case = json.loads((folder / "case.json").read_text())
    expected = case["expect"]
    environment = {"CASE": str(folder), "TMP": str(tmp_path), "GOLDENS": str(goldens)}
    if prepare := case.get("prepare"):
        assert ran(prepare, environment, ROOT).returncode == 0
    kept = Path(re.sub(r"\$TMP", str(tmp_path), expected.get("unchanged", "")))
    before = kept.read_bytes() if kept.is_file() else b""

    done = ran(case["command"], environment, ROOT)
    said = done.stdout + done.stderr
    if statuses := allowed(expected):
        assert done.returncode in statuses, said
    if word := expected.get("no"):
        assert word not in said
    for name in expected.get("files", []):
        assert Path(name.replace("$TMP", str(tmp_path))).is_file(), said
    if before:
        assert kept.read_bytes() == before
    refused = done.returncode == 2 and 2 in allowed(expected)
    if (folder / "check.py").exists() and not refused and "check.py" not in case["command"]:
        checked = ran(f"python {folder / 'check.py'}", environment, ROOT)
        assert checked.returncode == 0, checked.stdout + checked.stderr
