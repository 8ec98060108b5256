"""Runs of the harness that tests make: as long as it takes to have some of each fault."""

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

from chaos.analysis import Figures
from chaos.harness import Run, Setting
from chaos.subjects import find_subject

SEED = random.SystemRandom().getrandbits(32)


async def short_run(name: str, directory: Path, seconds: float, **options: Any) -> Figures:
    """Run on a subject; show the seed if the test fails."""
    print(f"seed {SEED}")  # noqa: T201
    setting = Setting(seconds, processes=4, tokens=6, seed=SEED, directory=directory, **options)
    subject = find_subject(name)
    run = Run(subject, name, sys.executable, setting, lambda text: None)
    return await run.run(asyncio.Event())
