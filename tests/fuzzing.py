"""Outside bytes as they come when something has gone wrong, or somebody means harm: for test_faults.py.

PYTHONPATH=. python tests/fuzzing.py messages 100000    # one reader, by Atheris, in an empty folder
"""

import faulthandler
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 8))
"""Inputs for each reader in the fast suite."""
MANY = int(os.environ.get("FUZZ_MANY", 100_000))
"""Inputs for each reader in the slow suite."""
SECONDS = 20
"""A reader that takes longer for one of these small files hangs."""
MOST = 2 << 30
"""Bytes that reading any of them may add to the memory in use."""

Reader = tuple[list[bytes], Callable[[bytes], object]]
"""Whole files, of which damaged ones are made, and what reads them."""


def harmed(*whole: bytes) -> st.SearchStrategy[bytes]:
    """One of these files with bytes changed, lost, doubled or added, or cut off; or nothing but noise."""

    @st.composite
    def strategy(draw: Callable[..., Any]) -> bytes:
        data = bytearray(draw(st.sampled_from(whole)))
        for _ in range(draw(st.integers(1, 3))):
            where, how = draw(st.integers(0, len(data))), draw(st.integers(0, 4))
            what = draw(st.binary(max_size=8))
            length = draw(st.sampled_from([0, 1, 4, 1000])) if how == 1 else len(what)
            if how == 4:
                del data[where:]
            elif how == 3:
                data[where:where] = data[where : where + 1000]
            elif how == 2:
                data[where:where] = what
            else:
                data[where : where + length] = what
        return bytes(data)

    return st.one_of(strategy(), strategy(), strategy(), st.binary(max_size=200))


def fuzz(inputs: st.SearchStrategy[Any], count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Calls a test with `count` inputs, which are always the same where they are few."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        limits = settings(
            max_examples=count,
            deadline=None,
            derandomize=count < 1000,
            database=None,
            suppress_health_check=checks,
        )
        return limits(given(inputs)(test))

    return decorate


class Survivor:
    """Calls a reader with one input after the other, and counts what becomes of them.

    Raises:
        AssertionError: it was refused by more than one line, or something was written outside of `folder`.
    """

    def __init__(self, read: Callable[[bytes], object], folder: Path) -> None:
        from common.cli import UserError  # not above: Atheris wants to see how it is imported

        self.read, self.folder, self.refusal = read, f"{folder.resolve()}{os.sep}", UserError
        self.outcomes = {"read": 0, "refused": 0}
        self.outside: list[str] = []
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sys.addaudithook(self.watch)
        self.watching = False

    def __call__(self, data: bytes) -> None:
        self.watching = True
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
        try:
            self.read(data)
            self.outcomes["read"] += 1
        except self.refusal as refused:
            assert "\n" not in str(refused) and str(refused)
            self.outcomes["refused"] += 1
        finally:
            faulthandler.cancel_dump_traceback_later()
            self.watching = False
        assert not self.outside, f"written outside of {self.folder}: {self.outside}"

    def watch(self, event: str, words: tuple[Any, ...]) -> None:
        """Notes what is opened for writing, made, renamed or removed elsewhere."""
        names = {"open": words[:1], "os.rename": words[:2], "os.link": words[1:2], "os.symlink": words[1:2]}
        names |= dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.chmod"), words[:1])
        if not self.watching or event not in names:
            return
        if event == "open" and not words[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if event != "open" and words[-1] not in (-1, None):
            return  # within a folder that is open: as shutil.rmtree does
        for path in names[event]:
            if isinstance(path, str | bytes | os.PathLike) and not self.inside(os.fsdecode(path)):
                self.outside.append(f"{event} {path!r}")

    def inside(self, path: str) -> bool:
        absolute = os.path.abspath(path)  # noqa: PTH100 - without a look at what is there
        return f"{absolute}/".startswith(self.folder) or path == os.devnull or "__pycache__" in path

    def __str__(self) -> str:
        """What became of the inputs, and the memory that they took at most."""
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before)
        assert grown < MOST, f"{grown:,} bytes"
        return f"{sum(self.outcomes.values()):,} inputs, {self.outcomes}, memory grew by {grown >> 20} MB"


def main(name: str, count: int) -> None:
    """Fuzzes one reader, in this process: an input that reaches new lines of our code is changed further."""
    import atheris

    with atheris.instrument_imports(include=["common", "util"]):
        import test_faults

    work, corpus = Path("work"), Path("corpus")
    for folder in (work, corpus):
        folder.mkdir()
    whole, read = {reader.__name__: reader for reader in test_faults.READERS}[name](work.resolve())
    for number, data in enumerate(whole):
        (corpus / f"{number}").write_bytes(data)
    survivor, said = Survivor(read, work), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def call(data: bytes) -> None:
        survivor(data)
        if sum(survivor.outcomes.values()) % (count // 10) == 0:
            os.write(said, f"{name}: {survivor}\n".encode())

    longest = f"-max_len={2 * max(map(len, whole))}"
    limits = (longest, f"-runs={count + len(whole) + 1}", "-reduce_inputs=0", "-rss_limit_mb=0")
    atheris.Setup(["fuzzing", *limits, "-verbosity=0", str(corpus)], call)
    atheris.Fuzz()  # does not come back


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
