"""`litpeft fit`, `validate`, `test` and `predict`: run the verb and report how it ended."""

from __future__ import annotations

import shlex
import sys
from itertools import takewhile

from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from litpeft.callbacks.run_record import is_out_of_memory
from litpeft.cli.console import quieten
from litpeft.cli.lightning_cli import LitPeftCLI
from litpeft.cli.shared_model import predict_runs
from litpeft.errors import UserError, find_system_error
from litpeft.training import failure_messages
from litpeft.training.meeting import open_meeting
from litpeft.training.outlets import outlet_of, send
from litpeft.training.processes import is_first_process

REPORT = "report.html"


class FitCLI(LitPeftCLI):
    """The command line of a verb that also sends a report on the run to the loggers that take files."""

    def after_fit(self) -> None:
        super().after_fit()
        takers = [logger for logger in self.trainer.loggers if outlet_of(logger).takes_files]
        if not takers or not self.trainer.is_global_zero:
            return
        from litpeft.analysis.comparison import compare  # slow imports
        from litpeft.analysis.report.page import write_page

        path = self.run_dir / REPORT
        try:
            write_page(compare([self.run_dir]), path, f"litpeft report {shlex.quote(str(self.run_dir))}")
        except UserError as error:  # plotly is missing
            print(f"litpeft: warning: no report is sent to the loggers: {error}", file=sys.stderr)
        else:
            send(takers, "file", path)


def main(arguments: list[str]) -> int:
    """Run one verb and return the exit code: 0, 1 (the run failed), 130 or 143 (interrupted).

    Raises:
        UserError: an option or a file of the user is wrong.
    """
    quieten()
    try:
        _one_of_several(arguments)
    except UserError:
        raise
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except (SystemExit, KeyboardInterrupt) as stop:  # RunRecorder has recorded the interruption
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
        elif system := find_system_error(error):
            print(f"litpeft: error: {system.filename or 'a file'}: {system.strerror}.", file=sys.stderr)
        elif "DataLoader worker" in reason:
            print(
                f"litpeft: error: a dataloader worker died ({reason}); "
                "the host memory may be exhausted: try a smaller --data.num_workers.",
                file=sys.stderr,
            )
        elif hasattr(error, "traceback_file"):
            print(f"litpeft: error: the run failed: {reason} (traceback: {error.traceback_file})", file=sys.stderr)
        else:
            raise
        return 1
    return 0


def _one_of_several(arguments: list[str]) -> None:
    """The first process tells how all of them ended, and the others do where it cannot."""
    verb, options = arguments[0], arguments[1:]
    run_dirs = list(takewhile(lambda word: not word.startswith("-"), options)) if verb == "predict" else []
    open_meeting()
    try:
        if run_dirs:
            predict_runs(run_dirs, options[len(run_dirs) :])
        else:
            FitCLI(verb, options)
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:  # --print_config
            raise
        if is_first_process():
            failure_messages.publish_from_rank_zero(str(error))
        elif failure_messages.rank_zero_reported(str(error)):
            raise SystemExit(1) from error
        raise
