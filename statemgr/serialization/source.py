"""Python source under construction, for a predicate."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count

Predicate = Callable[[object], bool]
_CONSTANTS = "\0"  # stands for the parameters until all are known; no repr has it in it


class Source:
    """Lines of functions that return False as soon as a test fails.

    Attributes:
        depth: How many blocks the next line stands in.
    """

    def __init__(self) -> None:
        self.depth = 0
        self._lines: list[str] = []
        self._tests: list[str] = []  # to be written as one `if`, once a statement must follow
        self._constants: dict[str, object] = {"type": type, "len": len}
        self._numbers = count(1)

    def test(self, mismatch: str) -> None:
        """Return False where `mismatch` is true."""
        self._tests.append(mismatch)

    def line(self, text: str) -> None:
        """Write a statement."""
        self._flush()
        self._lines.append("    " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Write a statement and, below it, what is written in the context."""
        self.line(head)
        start = len(self._lines)
        self.depth += 1
        yield
        self._flush()
        if len(self._lines) == start:
            self.line("pass")
        self.depth -= 1

    def function(self, name: str) -> AbstractContextManager[None]:
        """Begin a function of one parameter, `o`."""
        # Constants are parameters with a default: a local is found faster than a global.
        return self.block(f"def {name}(o, {_CONSTANTS}):")

    def name(self, prefix: str) -> str:
        """Return a name that is not used yet."""
        return f"{prefix}{next(self._numbers)}"

    def constant(self, value: object) -> str:
        """Return the name under which the functions know `value`."""
        for name, known in self._constants.items():
            if known is value:
                return name
        name = self.name("c")
        self._constants[name] = value
        return name

    def compile(self, name: str) -> Predicate:
        """Return the function called `name`."""
        constants = ", ".join(f"{constant}={constant}" for constant in self._constants)
        source = "\n".join(line.replace(_CONSTANTS, constants, 1) for line in self._lines)
        scope = dict(self._constants)
        exec(source, scope)  # noqa: S102 - made of the program's field names and words of ours
        return scope[name]  # type: ignore[return-value]

    def _flush(self) -> None:
        if self._tests:
            tests, self._tests = " or ".join(self._tests), []
            self.line(f"if {tests}:")
            self._lines.append("    " * (self.depth + 1) + "return False")
