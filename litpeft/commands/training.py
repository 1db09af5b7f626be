"""`litpeft fit`, `validate`, `test` and `predict`: run one of them, and tell how it ended."""

from __future__ import annotations

import sys

from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from litpeft.callbacks.run_record import is_out_of_memory
from litpeft.cli.console import quieten
from litpeft.cli.lightning_cli import LitPeftCLI
from litpeft.errors import UserError, of_the_system
from litpeft.training import failure_messages
from litpeft.training.processes import started_first


def main(words: list[str]) -> int:
    """Run one verb; the exit code is 0, 1 (the run failed), 130 or 143 (interrupted). Mistakes raise `UserError`."""
    quieten()
    try:
        _one_of_several(words)
    except UserError:
        raise
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except (SystemExit, KeyboardInterrupt) as stop:  # Lightning has caught Ctrl-C or SIGTERM; RunRecorder has told
        if isinstance(stop, SIGTERMException):
            return stop.code or 143
        return 130 if isinstance(stop, KeyboardInterrupt) or stop.code else 0  # 0: --help, --print_config
    except Exception as error:
        reason = getattr(error, "sentence", " ".join(str(error).split())) or type(error).__name__
        if is_out_of_memory(error):
            hint = (
                "try a smaller --data.batch_size with --trainer.accumulate_grad_batches, or a smaller --data.max_length"
            )
            print(f"litpeft: error: out of memory; {hint}.", file=sys.stderr)
        elif system := of_the_system(error):
            print(f"litpeft: error: {system.filename or 'a file'}: {system.strerror}.", file=sys.stderr)
        elif "DataLoader worker" in reason:
            print(
                f"litpeft: error: a process that makes batches has died ({reason}); "
                "the host's memory may have run out: try a smaller --data.num_workers.",
                file=sys.stderr,
            )
        elif hasattr(error, "traceback_file"):
            print(f"litpeft: error: the run failed: {reason} (traceback: {error.traceback_file})", file=sys.stderr)
        else:
            raise
        return 1
    return 0


def _one_of_several(words: list[str]) -> None:
    """The first process tells how all of them ended, and the others do where it cannot."""
    try:
        LitPeftCLI(words[0], words[1:])
    except BaseException as error:
        if started_first():
            failure_messages.tell_as_first(str(error))
        elif failure_messages.first_has_told():
            raise SystemExit(1) from error
        raise
