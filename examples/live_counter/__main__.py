"""`python -m examples.live_counter`; `--help` tells more."""

import argparse
import getpass
import os
import tempfile
from pathlib import Path

import uvicorn

from statemgr import Settings
from statemgr.errors import SettingsError

LONGEST_MESSAGE = 4096  # bytes that a client may send at once: a click takes some hundred
CLOSING_TIME = 5  # seconds that clients have to close their sockets at the end


def main() -> None:
    """Choose where states are kept, and start the workers."""
    parser = argparse.ArgumentParser(prog="python -m examples.live_counter")
    parser.add_argument("--url", help="keep states on this Redis server (redis://...)")
    parser.add_argument("--directory", help="keep states in this directory")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    if options.url and options.directory:
        parser.error("--url or --directory, not both")

    # The workers read the environment, as any program with StateManager.create() does.
    environ = os.environ
    if options.url:
        environ |= {"STATEMGR_MODE": "redis", "STATEMGR_REDIS_URL": options.url}
    elif options.directory or not (
        environ.get("STATEMGR_MODE") or environ.get("STATEMGR_REDIS_URL")
    ):
        usual = Path(tempfile.gettempdir(), f"live-counter-{getpass.getuser()}")
        directory = options.directory or environ.get("STATEMGR_DISK_DIRECTORY") or str(usual)
        environ |= {"STATEMGR_MODE": "disk", "STATEMGR_DISK_DIRECTORY": directory}
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        parser.error(str(error))
    if settings.mode == "memory" and options.workers > 1:
        parser.error("workers share nothing with STATEMGR_MODE=memory: add --workers 1")

    place = f" in {settings.disk_directory}" if settings.mode == "disk" else ""
    print(f"Rooms at http://{options.host}:{options.port}/room/lobby (or any other name)")
    print(f"States on {settings.mode}{place}. Ctrl-C ends it.", flush=True)
    uvicorn.run(
        "examples.live_counter.app:app",
        host=options.host,
        port=options.port,
        workers=options.workers,
        ws="websockets-sansio",  # what newer uvicorn takes by itself; older ones warn of their own
        ws_max_size=LONGEST_MESSAGE,
        timeout_graceful_shutdown=CLOSING_TIME,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
