"""Runs of the harness on a real server."""

from pathlib import Path

from runs import short_run

from chaos.subjects import SUBJECTS


async def test_redis_under_all_faults(tmp_path: Path) -> None:
    """Nothing is lost on a server that keeps what it says, and there was some of each fault."""
    figures = await short_run("redis", tmp_path, 7.0)
    assert not figures.is_wrong, figures.violations
    assert (figures.lost, figures.doubled, figures.held) == (0, 0, 0)
    assert figures.undecided == 0
    assert figures.acknowledged > 0
    assert figures.beyond > 0
    assert set(figures.faults) == SUBJECTS["redis"].faults
