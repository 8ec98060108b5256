"""Runs of the harness on disk, and on a manager that is broken."""

from pathlib import Path

from runs import short_run

from chaos.plan import EVERY, FaultKind
from chaos.subjects import SUBJECTS


def written_faults(directory: Path) -> list[str]:
    (path,) = directory.rglob("faults")
    return path.read_text().splitlines()


async def test_disk_under_all_faults(tmp_path: Path) -> None:
    """Nothing is lost on disk, and there was some of each fault."""
    figures = await short_run("disk", tmp_path, 5.0)
    assert not figures.is_wrong, figures.violations
    assert (figures.lost, figures.doubled, figures.held) == (0, 0, 0)
    assert figures.undecided == 0
    assert figures.acknowledged > 0
    assert figures.beyond > 0
    assert set(figures.faults) == SUBJECTS["disk"].faults
    assert len(written_faults(tmp_path)) == sum(figures.faults.values())


async def test_writer_that_ignores_its_lost_lock_is_found(tmp_path: Path) -> None:
    """Changes are lost, and both checkers say so. It is stopped more often than others."""
    figures = await short_run(
        "tests.chaos.stale_writer:SUBJECT",
        tmp_path,
        5.0,
        expiration=0.15,
        every=EVERY | {FaultKind.STOP: 0.1},
    )
    assert figures.is_wrong
    assert figures.lost > 0
    for kind in ("counter", "register"):
        assert any(f" {kind} " in text for text in figures.violations), figures.violations
