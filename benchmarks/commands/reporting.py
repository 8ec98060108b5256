"""`report`: a page with plots of what was measured."""

from benchmarks.discovery import find_scenarios, find_subjects
from benchmarks.files import FileError, read_report
from benchmarks.options import ReportOptions
from benchmarks.page import write_page


def make_page(options: ReportOptions) -> None:
    """Write the page.

    Raises:
        FileError: The file is not what `--json` writes, or has no measurement.
        ReportError: A package that draws is not installed.
    """
    report = read_report(options.file)
    if not report.rows:
        raise FileError(f"{options.file}: nothing was measured")
    write_page(report, find_subjects(), find_scenarios(), options.output)
    size = options.output.stat().st_size
    print(
        f"{options.output}: {len(report.rows)} rows of {len(report.measurements)} measurements, "
        f"{size / 1e6:.1f} MB; open it in a browser"
    )
