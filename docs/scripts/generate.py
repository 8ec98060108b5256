"""Write what the documents repeat from elsewhere: `python docs/scripts/generate.py`.

docs/settings.md        from the table of options, and the fields of `Settings`
README.md               between its marks: the tables of "How fast", from the committed result file
docs/performance.md     between its marks: what the README has there, and our rows of that file

`tests/unit/test_documents.py` compares the committed files with what this returns.
"""

import re
from pathlib import Path

from figures import figures_text

from benchmarks.figures import count, span, times
from benchmarks.files import Report, read_report
from benchmarks.subject import Role
from benchmarks.table import labels
from statemgr.options import OPTIONS, variable_of

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "docs/settings.md"
README = ROOT / "README.md"
PERFORMANCE = ROOT / "docs/performance.md"
RESULTS = ROOT / "benchmarks/results/reference.json"

GROUPS = {
    "Every backend": (
        "mode",
        "token_expiration",
        "lock_warning_threshold",
        "max_state_size",
        "on_decode_error",
        "log_idents",
        "log_key",
    ),
    "Memory": ("memory_rollback",),
    "Disk": ("disk_directory", "disk_fsync", "disk_exclusive", "disk_debounce"),
    "Redis": (
        "redis_url",
        "key_prefix",
        "lock_expiration",
        "oplock",
        "oplock_hold_time",
        "redis_durability",
        "redis_replicas",
    ),
    "Records, on disk and in Redis": ("compress_above", "encryption_keys"),
}

_HEAD = """\
# Settings

<!-- Written by docs/scripts/generate.py from statemgr/options.py: change it there. -->

`StateManager.create()` reads these variables of the environment. `Settings` has the same names in
small letters, without the prefix, and is passed in their place:

```python
from statemgr import Settings, StateManager

settings = Settings(mode="disk", disk_directory="states", token_expiration=1800)
manager = StateManager.create(settings)
```

An empty variable counts as not set. A value that cannot be used, a pair that does not fit, or a
variable with the prefix that is none of these is a `SettingsError`, which names the variable, its
value and what is allowed, and no password. Durations are seconds, sizes bytes.

A backend that is made by hand takes the same options without its own name before them:
`StateManagerDisk("states", fsync=True)`, `StateManagerMemory(rollback=False)`,
`StateManagerRedis(url, durability="aof")`.
"""

_TAIL = """
## What has to fit together

- `STATEMGR_LOCK_WARNING_THRESHOLD` and `STATEMGR_OPLOCK_HOLD_TIME` are below
  `STATEMGR_LOCK_EXPIRATION`.
- `STATEMGR_DISK_DEBOUNCE` above 0 needs `STATEMGR_DISK_EXCLUSIVE`.
- A mode that is given wins, whatever else is set. Without one, `STATEMGR_REDIS_URL` chooses
  `redis`.
- What Kubernetes and Docker links set for a service called `statemgr` or `statemgr-redis`, as
  `..._SERVICE_HOST=10.0.0.11` and `..._PORT=tcp://10.0.0.11:6379`, is left alone.
- Processes that share states need the same `STATEMGR_KEY_PREFIX` and the same encryption keys. Give
  them the same `STATEMGR_TOKEN_EXPIRATION` too: each renews states by its own.
"""


def settings_page() -> str:
    """Return docs/settings.md."""
    parts = [_HEAD]
    for group, names in GROUPS.items():
        rows = [f"| `{variable_of(name)}` | {_default(name)} | {_what(name)} |" for name in names]
        parts.append(f"\n## {group}\n\n| variable | default | what it does | allowed |\n")
        parts.append("| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n")
    return "".join(parts) + _TAIL


def _default(name: str) -> str:
    default = OPTIONS[name].default
    if isinstance(default, bool):
        return "on" if default else "off"
    if default in (None, "", ()):
        return "none"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _what(name: str) -> str:
    option = OPTIONS[name]
    return f"{option.help} | {option.allowed}"


def readme_page(text: str, report: Report) -> str:
    """Return README.md with the figures between its marks written anew."""
    return _filled(text, "figures", figures_text(report))


def performance_page(text: str, readme: str, report: Report) -> str:
    """Return docs/performance.md with what stands between its marks written anew."""
    found = re.search(r"^## How fast\n\n(.*?)(?=^## )", readme, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError('README.md has no section "How fast"')
    section = re.sub(r"<!--.*?-->\n+", "", found[1]).strip()
    section = section.replace("](docs/", "](").replace("](benchmarks/", "](../benchmarks/")
    return _filled(_filled(text, "readme", section), "results", _results(report))


def _filled(text: str, mark: str, content: str) -> str:
    pattern = re.compile(f"(<!-- begin {mark}[^\n]*-->\n).*?(<!-- end {mark} -->)", re.DOTALL)
    text, count = pattern.subn(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)
    if count != 1:
        raise ValueError(f"the document has {count} places called {mark}")
    return text


def _results(report: Report) -> str:
    lines = [
        "| scenario | tasks | subject | op/s | min..max | beside the fastest peer |",
        "| --- | ---: | --- | ---: | --- | ---: |",
    ]
    names = labels(report.rows)
    for row in report.rows:
        if row.role == Role.OURS:
            name = f"{names[row.case]}/{row.part}" if row.part else names[row.case]
            peer = f"{times(row.versus_peer)} {row.versus_peer.against}" if row.versus_peer else ""
            lines.append(
                f"| {name} | {row.case.tasks} | {row.subject} | {count(row.rate)} "
                f"| {span(row.rate_min, row.rate_max)} | {peer} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Write the files."""
    report = read_report(RESULTS)
    readme = readme_page(README.read_text(), report)
    README.write_text(readme)
    SETTINGS.write_text(settings_page())
    PERFORMANCE.write_text(performance_page(PERFORMANCE.read_text(), readme, report))


if __name__ == "__main__":
    main()
