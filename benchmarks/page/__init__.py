"""The page of a run: one HTML file with plots, which needs nothing beside it.

Importing this package loads neither matplotlib nor Jinja2: whoever only measures needs neither.
"""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.files import Report
from benchmarks.scenario import Scenario
from benchmarks.subject import Subject

__all__ = ["ReportError", "write_page"]


class ReportError(Exception):
    """The page cannot be made; the text says what to do."""


def write_page(
    report: Report,
    subjects: Mapping[str, Subject],
    scenarios: Mapping[str, Scenario],
    path: Path,
) -> None:
    """Write the page of a report, the same bytes for the same report.

    Args:
        report: What a run found.
        subjects: Every subject by name, for what it is and what it lacks; one that the report has
            and this has not is shown without.
        scenarios: Every scenario by name, for what it does; the same holds.
        path: The file to write.

    Raises:
        ReportError: A package that draws is not installed.
    """
    try:
        from benchmarks.page.document import make_page
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("jinja2", "markupsafe", "matplotlib"):
            raise
        raise ReportError(
            f"the page needs {package}: pip install '.[plots]' in the clone"
        ) from error
    path.write_text(make_page(report, subjects, scenarios), encoding="utf-8")
