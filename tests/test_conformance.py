"""Other people's test files end as a volume, as a slice, or with a reason; nothing else happens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_file_of_other_packages_is_read_or_refused_with_a_reason(tmp_path):
    pytest.importorskip("data_store", reason="needs pydicom-data")
    page = tmp_path / "conformance.md"
    command = [sys.executable, "benchmarks/conformance.py", page]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    text = page.read_text()
    assert "FAILED" not in text
    # Wherever versions are the same the page in the docs is what comes out, but for the memory.
    known = (ROOT / "docs/conformance.md").read_text()
    versions = r"All \d+ files that .*"
    if re.search(versions, text).group() == re.search(versions, known).group():
        tables = [re.findall(r"^\| .*", page, re.MULTILINE) for page in (text, known)]
        assert tables[0] == tables[1]
    for claim in ("claims.nii", "claims-slices.dcm", "claims-frames.dcm"):
        assert re.search(rf"^\| `{claim}` \| refused", text, re.MULTILINE)
