"""The README: its numbers are those of the records, its Python runs, its two commands are there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_what_the_records_say():
    done = subprocess.run([sys.executable, ROOT / "bench" / "tables.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_blocks_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_two_commands():
    lines = README.splitlines()
    assert len([line for line in lines if re.match(r"pip install .* && nftk train", line)]) == 1
    tests = r"pip install .* && python -m pytest -n 2 --dist worksteal$"
    assert len([line for line in lines if re.match(tests, line)]) == 1


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
