"""Become a program that ends when the tests do, with all that it has started. Run by its path.

The process that the tests start forks, and then turns into the program, so the tests learn how
it ends. It is the first of a process group of its own, which its workers join. The forked child
watches: at the end of a pipe whose other end the tests hold, or of the tests' process, it kills
the group, itself included. While it lives the group's number can be no other's.

The command line: the descriptor of the pipe, the program's command.
"""

import contextlib
import os
import select
import signal
import sys


def main() -> None:
    pipe, *command = sys.argv[1:]
    tests = os.getppid()
    if os.fork() == 0:
        watch(int(pipe), tests)
    os.close(int(pipe))
    os.execv(command[0], command)  # noqa: S606  # there is no shell to be had


def watch(pipe: int, tests: int) -> None:
    ends = select.poll()
    ends.register(pipe, 0)  # its end is reported without being asked for
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # an old kernel, or a sandbox: then the pipe has to do
            ends.register(os.pidfd_open(tests), select.POLLIN)
    ends.poll()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
