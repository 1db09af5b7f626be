"""Run a fuzzed command line in this process, and check that it runs or is refused correctly."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from litpeft.__main__ import main
from litpeft.cli import lightning_cli
from litpeft.commands import sweep, training
from litpeft.sweeps import resolve
from litpeft.sweeps.experiment import Trial
from tests.fuzz.world import World

SECONDS = 30  # a case that takes longer hangs
LONGEST = 1000  # letters of an error message
PREFIX = "litpeft: error: "


@dataclass
class Case:
    """A command line.

    Attributes:
        arguments: the arguments of `litpeft`.
        files: files written before the run, path -> bytes as Latin-1 text.
        named: an error message must contain one of these.
        trained: train three steps instead of only building the run.
    """

    arguments: list[str]
    files: dict[str, str] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    trained: bool = False

    def as_json(self) -> str:
        return json.dumps(asdict(self))


class Hung(BaseException):
    """Raised by the alarm; not an Exception, so that nothing catches it."""


class _Short(lightning_cli.LitPeftCLI):
    """Reuses one parser per verb, which takes most of a second to build; builds a run, or trains three steps."""

    trains = False
    parsers: dict[tuple[type, str], dict[str, Any]] = {}

    def setup_parser(self, *arguments: Any) -> None:
        parts = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
        cached = self.parsers.get((type(self), self.verb))
        if cached is None:
            super().setup_parser(*arguments)
            cached = self.parsers[type(self), self.verb] = {name: vars(self)[name] for name in parts}
        vars(self).update(cached)

    def _run_subcommand(self, verb: str) -> None:
        if self.trains or verb != "fit":
            super()._run_subcommand(verb)
            return
        state = SimpleNamespace(fn=SimpleNamespace(value="fit"))
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        self.datamodule.trainer = SimpleNamespace(
            is_global_zero=True,
            lightning_module=self.model,
            global_rank=0,
            world_size=1,
            state=state,
            strategy=strategy,
        )
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        self.model.build(self.datamodule, strategy.root_device)

    def instantiate_trainer(self, **options: Any) -> Any:
        trainer = super().instantiate_trainer(**options)
        trainer.fit_loop.epoch_loop.max_steps = min(3, trainer.max_steps) if trainer.max_steps > 0 else 3
        return trainer


@contextlib.contextmanager
def shortened_cli() -> Iterator[type[_Short]]:
    """While active, `fit` only builds its run, or trains three steps if the yielded class says so; sweeps run no trial."""
    cli, run, resolve_all = training.LitPeftCLI, sweep._Sweep.run, resolve.resolve

    def first(trials: list[Trial]) -> dict[str, dict[str, Any]]:
        """Resolve only the first trial; the other trials use the same code."""
        config = resolve_all(trials[:1])[trials[0].name] if _Short.trains else {"seed_everything": 0}
        return {trial.name: config for trial in trials}

    def write_sweep(*arguments: Any) -> None:
        if _Short.trains:
            write(*arguments)

    write = sweep.write_sweep
    training.LitPeftCLI, sweep._Sweep.run, resolve.resolve, sweep.write_sweep = (
        _Short,
        lambda self: 0,
        first,
        write_sweep,
    )
    gc.collect()
    gc.freeze()  # keeps the garbage collector from scanning the objects of imported libraries in each case
    try:
        yield _Short
    finally:
        training.LitPeftCLI, sweep._Sweep.run, resolve.resolve, sweep.write_sweep = cli, run, resolve_all, write
        gc.unfreeze()


def _hang(*_: Any) -> None:
    raise Hung


def run_case(world: World, cli: type[_Short], case: Case) -> tuple[str, str]:
    """Run a case; return ("ran", ""), ("refused", its error message) or ("wrong", the failure).

    Args:
        world: the folder to run in, which is restored afterwards.
        cli: the class yielded by `shortened_cli`.
        case: the case.
    """
    for name, text in case.files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(text.encode("latin-1"))
    before, cli.trains = world.state(), case.trained
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    environment, paths, handlers = dict(os.environ), list(sys.path), {}
    for each in (signal.SIGINT, signal.SIGTERM):
        handlers[each] = signal.getsignal(each)
    handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, _hang)
    signal.alarm(SECONDS)
    code: int | None = None
    crash = ""
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(list(case.arguments))
            except SystemExit as stop:
                code = stop.code or 0
            except Hung:
                crash = f"hangs: {traceback.format_exc()[-1500:]}"
            except BaseException:
                crash = traceback.format_exc()[-2500:]
    finally:
        signal.alarm(0)
        for each, handler in handlers.items():
            signal.signal(each, handler)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = paths
        torch.use_deterministic_algorithms(False)
        torch.autograd.set_detect_anomaly(False)
        os.chdir(world.folder)
    out.flush()
    err.flush()
    output = err.buffer.getvalue().decode("utf-8")
    verdict = _judged(case, code, crash, output, before, world.state())
    if world.state() != before or any(name.startswith("existing") for name in case.files):
        world.restore()
    else:
        world.clear()
    return verdict


def _judged(
    case: Case, code: int | None, crash: str, output: str, before: dict[str, Any], after: dict[str, Any]
) -> tuple[str, str]:
    if crash:
        return "wrong", crash
    messages = re.findall(rf"(?m)^{PREFIX}(.*)$", output)
    if "Traceback" in output:
        return "wrong", f"a traceback: {output[-2000:]}"
    if code == 0:  # other output may be warnings
        return "ran", ""
    if code != 2:
        return "wrong", f"exit code {code}: {output[-1000:]}"
    if len(messages) != 1 or not output.rstrip("\n").endswith(messages[0]) or "\r" in messages[0]:
        return "wrong", f"not one message: {output[-1000:]!r}"
    if len(messages[0]) > LONGEST:
        return "wrong", f"a message of {len(messages[0])} letters: {messages[0][:300]}"
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in messages[0]):
        return "wrong", f"control characters: {messages[0]!r}"
    if changed := {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}:
        return "wrong", f"refused, but changed {sorted(changed)[:5]}: {messages[0]}"
    if not any(name in messages[0] for name in case.named):
        return "wrong", f"contains none of {case.named}: {messages[0]}"
    return "refused", messages[0]
