"""The JSON file of a run: written by `--json`, read back by `compare` and `report`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.results import Case, Failure, Latency, Measurement, Point, Ratio, Row

T = TypeVar("T")

FORMAT = 2
"""The version of the file's shape."""


class FileError(Exception):
    """A file is not what `--json` writes; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything of one run.

    Attributes:
        environment: The machine, the interpreter, the versions.
        options: What was asked for.
        complete: Whether the run came to its end.
        measurements: What each process reported.
        failures: The processes that reported nothing.
        rows: The table.
    """

    environment: Mapping[str, Any]
    options: Mapping[str, Any]
    complete: bool
    measurements: Sequence[Measurement]
    failures: Sequence[Failure]
    rows: Sequence[Row]


def write_report(report: Report, path: Path) -> None:
    """Write a report to a file: JSON with a line for each measurement, failure and row."""
    parts = [
        f"{json.dumps(name)}: {_lines(value) if isinstance(value, list) else json.dumps(value)}"
        for name, value in {"format": FORMAT, **asdict(report)}.items()
    ]
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _lines(items: list[Any]) -> str:
    return "[\n" + ",\n".join(map(json.dumps, items)) + "\n]"


def read_report(path: Path) -> Report:
    """Read a report back.

    Raises:
        FileError: The file holds something else, or was written by another version.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        written_by = fields.pop("format")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileError(f"{path} is no file that --json wrote") from error
    if written_by != FORMAT:
        raise FileError(
            f"{path} has format {written_by} in place of {FORMAT}: measure again, or read it with "
            "the version that wrote it"
        )
    try:
        return Report(
            **fields
            | {
                "measurements": [_measurement(one) for one in fields["measurements"]],
                "failures": [_with_case(Failure, one) for one in fields["failures"]],
                "rows": [_row(one) for one in fields["rows"]],
            }
        )
    except (TypeError, KeyError) as error:
        raise FileError(f"{path} lacks something, or has too much: {error}") from error


def point_of(fields: Mapping[str, Any]) -> Point:
    """Make a `Point` of the fields that `asdict` has made of one."""
    return Point(**{**fields, "latency": _optional(Latency, fields["latency"])})


def _measurement(fields: Mapping[str, Any]) -> Measurement:
    points = tuple(point_of(point) for point in fields["points"])
    return _with_case(Measurement, {**fields, "points": points})


def _row(fields: Mapping[str, Any]) -> Row:
    nested = {"latency": Latency, "versus_peer": Ratio, "versus_floor": Ratio}
    made = {name: _optional(cls, fields[name]) for name, cls in nested.items()}
    peers = tuple(Ratio(**ratio) for ratio in fields["versus_peers"])
    return _with_case(Row, {**fields, **made, "versus_peers": peers})


def _with_case(cls: type[T], fields: Mapping[str, Any]) -> T:
    return cls(**{**fields, "case": Case(**fields["case"])})


def _optional(cls: type[T], fields: Mapping[str, Any] | None) -> T | None:
    return None if fields is None else cls(**fields)
