"""Run tests on a changed copy of the repository, in processes forked from one that has imported the libraries.

Only the libraries: litpeft and the tests are imported in each fork, from the copy.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # set before the hub's libraries are imported

ROOT = Path(__file__).parents[2]
FAILED, NONE_COLLECTED, NO_SUCH_TEST = 1, 5, 4  # exit codes of pytest
CANNOT_BE_IMPORTED = "found no collectors for", "while loading conftest"  # in what pytest prints
LIBRARIES = (
    "lightning.pytorch.cli", "torch", "transformers", "peft", "datasets", "torchmetrics", "bitsandbytes", "safetensors.torch",
    "jsonargparse", "scipy.special", "scipy.stats", "hypothesis", "yaml", "rich.console", "tqdm.auto", "PIL.Image",
    "transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama", "torch.distributed.tensor",
    "torch.distributed.fsdp", "pytest_timeout", "xdist.plugin", "torch._dynamo", "torch.utils.flop_counter",
    "transformers.integrations.bitsandbytes", "filelock", "torch.utils.tensorboard", "pandas", "statsmodels.stats.weightstats",
    "statsmodels.stats.multitest", "statsmodels.stats.power", "statsmodels.stats.contingency_tables",
    "tensorboard.backend.event_processing.event_accumulator", "torchmetrics.classification", "torchmetrics.regression",
    "datasets.builder", "pyarrow.parquet", "tokenizers",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What the tests say.

    Attributes:
        code: pytest's exit code; None after a timeout.
        failed: the first test that failed, without its parameters; None if none did.
        output: end of the output.
        seconds: duration.
    """

    code: int | None
    failed: str | None
    output: str
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether a test has failed, or has not ended, or could not be collected."""
        if self.code == NO_SUCH_TEST:  # also if a named test's file, or conftest.py, cannot be imported
            return any(text in self.output for text in CANNOT_BE_IMPORTED)
        return self.code not in (0, NONE_COLLECTED)


def import_libraries() -> None:
    """Import what litpeft and the tests import, except litpeft and the tests."""
    import importlib

    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # collections in the forks skip the libraries' objects
    assert "litpeft" not in sys.modules


class FirstFailure:
    """A plugin of pytest that writes the name of the first test that fails into a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self._file.exists():
            self._file.write_text(report.nodeid.partition("[")[0])


class Copy:
    """A copy of the repository's files, in which one file at a time is changed.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "repository"
        listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        for name in filter(None, names):
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                shutil.copy2(ROOT / name, target)
        if (shared := ROOT.parent / "shared").is_dir():
            (folder / "shared").symlink_to(shared)
        self._changes = 0

    @contextmanager
    def changed(self, file: str, text: str) -> Iterator[None]:
        """Write another text into a file; put the old text back at the end."""
        path = self.folder / file
        before, times = path.read_bytes(), path.stat()
        self._changes += 1
        path.write_text(text, encoding="utf-8")
        # Python recompiles a file whose time has changed; two texts may be written in one second
        os.utime(path, (self._changes, self._changes))
        try:
            yield
        finally:
            path.write_bytes(before)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def run(self, arguments: Sequence[str], timeout: float) -> Outcome:
        """Run pytest with these arguments in a forked process, in the copy."""
        start, failed = time.monotonic(), self.folder.parent / "failed"
        failed.unlink(missing_ok=True)
        with tempfile.TemporaryFile() as output:
            if not (child := os.fork()):
                self._be_pytest(arguments, output.fileno(), failed)
            code = _wait(child, start + timeout)
            output.seek(0)
            text = output.read().decode(errors="replace")
        name = failed.read_text() if failed.exists() else None
        return Outcome(code, name, text[-6000:], time.monotonic() - start)

    def _be_pytest(self, arguments: Sequence[str], output: int, failed: Path) -> None:
        """Turn this process into pytest in the copy; never returns."""
        code = 3
        try:
            os.setsid()
            for number in (1, 2):
                os.dup2(output, number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.chdir(self.folder)
            os.environ["PYTHONPATH"] = str(self.folder)
            for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
                del sys.modules[name]
            sys.path[:] = [str(self.folder), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
            sys.argv[:] = ["pytest"]
            sys.modules["__main__"] = ModuleType("__main__")  # processes that tests start would import this one's
            with tempfile.TemporaryDirectory() as temporary:
                import pytest
                from hypothesis import Phase, settings

                # an example that fails is enough: it need not be made smaller
                settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None)
                settings.load_profile("mutants")
                options = ["-q", "-p", "no:cacheprovider", "-p", "no:warnings", "-p", "no:anyio"]
                options.append(f"--basetemp={temporary}/tests")
                code = int(pytest.main([*options, *arguments], [FirstFailure(failed)]))
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            os._exit(code)


def still_there(tests: Sequence[str], outcome: Outcome) -> list[str]:
    """Return the tests without those that pytest has not found: they are recorded, but have another name now.

    Pytest does not say which parameters it misses: all tests of the function are run instead.
    """
    if outcome.code != NO_SUCH_TEST or outcome.killed:
        return list(tests)
    named = re.findall(r"not found: (.+)$", outcome.output, re.MULTILINE)

    def is_gone(test: str) -> bool:
        return any(name == test or name.endswith(f"/{test}") for name in named)

    functions = [test.partition("[")[0] for test in tests]
    left = [
        whole if is_gone(whole) else test for test, whole in zip(tests, functions, strict=True) if not is_gone(test)
    ]
    return list(dict.fromkeys(left))


def _wait(child: int, end: float) -> int | None:
    """Return the exit code of a child process; None if it had to be killed, with its processes, at the end."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > end:
            code = None
            break
        time.sleep(0.01)
    with suppress(ProcessLookupError):  # the child leads a session: what it has started ends with it
        os.killpg(child, signal.SIGKILL)
    if code is None:
        os.waitpid(child, 0)
    return code


@contextmanager
def scratch_copy() -> Iterator[Copy]:
    """Yield a copy of the repository in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="litpeft-mutants-") as folder:
        yield Copy(Path(folder))
