"""Type checkers see what `api.py` says, and refuse what it marks."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
API = Path(__file__).with_name("api.py")


def _check(*command: str) -> None:
    checked = subprocess.run(  # the checkers of this environment
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_mypy_agrees() -> None:
    """In strict mode, with `warn_unused_ignores` on: a mark that nothing needs is an error."""
    # A cache of its own: a run of `make` may be writing to the other one.
    cache = ROOT / ".mypy_cache" / "typing-test"
    _check("mypy", "--strict", "--follow-imports=silent", f"--cache-dir={cache}", str(API))


def test_pyright_agrees(tmp_path: Path) -> None:
    """In strict mode. It goes by its own marks, and reports one that nothing needs."""
    config = {
        "extraPaths": [str(ROOT)],
        "pythonVersion": "3.11",
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": True,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    _check("pyright", f"--project={tmp_path}", f"--pythonpath={sys.executable}", str(API))


def test_code_of_the_readme_is_typed(tmp_path: Path) -> None:
    """What people paste passes mypy in strict mode."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    files = [tmp_path / f"pasted_{number}.py" for number in range(len(blocks))]
    for file, block in zip(files, blocks, strict=True):
        file.write_text(block)
    cache = ROOT / ".mypy_cache" / "typing-test"
    _check("mypy", "--strict", "--config-file=", f"--cache-dir={cache}", *map(str, files))
