"""Run one fuzzed command line in this process, and see whether it ran or was refused as it should be."""

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

SECONDS = 30  # no case takes nearly as long: one that does hangs
LONGEST = 1000  # letters of a sentence
SAID = "litpeft: error: "


@dataclass
class Case:
    """A command line.

    Attributes:
        words: of it.
        files: written before it runs, by name: bytes as Latin-1.
        named: a refusal names one of these.
        trained: whether it is to train, and not only to be built.
    """

    words: list[str]
    files: dict[str, str] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    trained: bool = False

    def as_json(self) -> str:
        return json.dumps(asdict(self))


class Hung(BaseException):
    """Not an Exception: nothing is to catch it."""


class _Short(lightning_cli.LitPeftCLI):
    """Reads all lines of a verb by one parser, since building it takes most of a second; builds a run, or trains three steps."""

    trains = False
    made: dict[tuple[type, str], dict[str, Any]] = {}

    def setup_parser(self, *arguments: Any) -> None:
        parts = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
        known = self.made.get((type(self), self.verb))
        if known is None:
            super().setup_parser(*arguments)
            known = self.made[type(self), self.verb] = {name: vars(self)[name] for name in parts}
        vars(self).update(known)

    def _run_subcommand(self, verb: str) -> None:
        if self.trains or verb != "fit":
            super()._run_subcommand(verb)
            return
        stage = SimpleNamespace(fn=SimpleNamespace(value="fit"))
        place = SimpleNamespace(root_device=torch.device("cpu"))
        self.datamodule.trainer = SimpleNamespace(
            lightning_module=self.model, global_rank=0, world_size=1, state=stage, strategy=place
        )
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        self.model.build(self.datamodule, place.root_device)

    def instantiate_trainer(self, **options: Any) -> Any:
        made = super().instantiate_trainer(**options)
        made.fit_loop.epoch_loop.max_steps = min(3, made.max_steps) if made.max_steps > 0 else 3
        return made


@contextlib.contextmanager
def shortened() -> Iterator[type[_Short]]:
    """Within, runs are built, or trained three steps where the class that is yielded says so, and no sweep runs any."""
    whole, run, every = training.LitPeftCLI, sweep._Sweep.run, resolve.resolve

    def first(trials: list[Trial]) -> dict[str, dict[str, Any]]:
        """The others are read by the same code."""
        own = every(trials[:1])[trials[0].name] if _Short.trains else {"seed_everything": 0}
        return {trial.name: own for trial in trials}

    def write_sweep(*given: Any) -> None:
        if _Short.trains:
            written(*given)

    written = sweep.write_sweep
    training.LitPeftCLI, sweep._Sweep.run, resolve.resolve, sweep.write_sweep = (
        _Short,
        lambda self: 0,
        first,
        write_sweep,
    )
    gc.collect()
    gc.freeze()  # all that torch and its like have made is not looked through again with each case
    try:
        yield _Short
    finally:
        training.LitPeftCLI, sweep._Sweep.run, resolve.resolve, sweep.write_sweep = whole, run, every, written
        gc.unfreeze()


def _hang(*_: Any) -> None:
    raise Hung


def run_case(world: World, how: type[_Short], case: Case) -> tuple[str, str]:
    """("ran" or "refused", its sentence), or ("wrong", what is).

    Args:
        world: where; it is put back as it was.
        how: of `shortened`.
        case: what.
    """
    for name, text in case.files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(text.encode("latin-1"))
    before, how.trains = world.state(), case.trained
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
                code = main(list(case.words))
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
    said = err.buffer.getvalue().decode("utf-8")
    verdict = _judged(case, code, crash, said, before, world.state())
    if world.state() != before or any(name.startswith("kept") for name in case.files):
        world.restore()
    else:
        world.clear()
    return verdict


def _judged(
    case: Case, code: int | None, crash: str, said: str, before: dict[str, Any], after: dict[str, Any]
) -> tuple[str, str]:
    if crash:
        return "wrong", crash
    sentences = re.findall(rf"(?m)^{SAID}(.*)$", said)
    if "Traceback" in said:
        return "wrong", f"a traceback: {said[-2000:]}"
    if code == 0:  # what else it says is a warning
        return "ran", ""
    if code != 2:
        return "wrong", f"exit code {code}: {said[-1000:]}"
    if len(sentences) != 1 or not said.rstrip("\n").endswith(sentences[0]) or "\r" in sentences[0]:
        return "wrong", f"not one sentence: {said[-1000:]!r}"
    if len(sentences[0]) > LONGEST:
        return "wrong", f"a sentence of {len(sentences[0])} letters: {sentences[0][:300]}"
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in sentences[0]):
        return "wrong", f"control characters: {sentences[0]!r}"
    if changed := {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}:
        return "wrong", f"refused, but changed {sorted(changed)[:5]}: {sentences[0]}"
    if not any(name in sentences[0] for name in case.named):
        return "wrong", f"names none of {case.named}: {sentences[0]}"
    return "refused", sentences[0]
