"""Become a server that ends when the tests do, however they end. Run as a program, by its path.

The process that the tests start forks, and then turns into the server: so the tests are the
server's parent, have its process id, and learn how it ended. The forked child watches. It waits
for the end of a pipe whose other end the tests hold, and of the tests' process itself; then it
kills the server and removes its directory.

Why not `PR_SET_PDEATHSIG`, with which the kernel would kill the server? It acts when the
*thread* ends that started the server, which may be a worker's in a living process, and Linux
alone has it. Why the process as well as the pipe? Whatever the tests have forked holds the pipe
too, and may outlive them: the workers of a `multiprocessing` pool do, for ever. Why is the
watcher the server's child? Its parent's id changes as the server ends, so it can never kill
another process that was given the same id.

Server and watcher are a session of their own: what is sent to the tests' process group, by
Ctrl-C or by a CI's timeout, reaches neither. A watcher that is killed itself takes the promise
with it.

The command line: the descriptor of the pipe, the server's directory, the server's command.
Nothing but the standard library is imported, and little of that: this is part of each start.
"""

import contextlib
import os
import select
import signal
import sys


def main() -> None:
    """Fork the watcher, and become the server."""
    pipe, directory, *command = sys.argv[1:]
    tests, server = os.getppid(), os.getpid()
    if os.fork() == 0:
        watch(int(pipe), tests, server, directory)
        os._exit(0)
    os.close(int(pipe))
    os.execv(command[0], command)  # noqa: S606  # there is no shell to be had


def watch(pipe: int, tests: int, server: int, directory: str) -> None:
    """Wait until the tests have ended, or have ended the server; leave nothing of it."""
    ends = select.poll()
    ends.register(pipe, 0)  # its end is reported without being asked for
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # an old kernel, or a sandbox: then the pipe has to do
            ends.register(os.pidfd_open(tests), select.POLLIN)
    ends.poll()
    if os.getppid() != server:
        return
    os.kill(server, signal.SIGKILL)

    import shutil  # not at the start
    import time

    while os.getppid() == server:
        time.sleep(0.001)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
