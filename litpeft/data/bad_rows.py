"""Rows that cannot be used: all are told at once, or left out and counted."""

from __future__ import annotations

from litpeft.errors import UserError

SHOWN = 5


class BadRows:
    """Collects the rows of a split that cannot be used.

    Args:
        skip: whether to leave them out (`data.on_bad_row skip`) instead of stopping.
        may_skip: whether the option applies: each row to predict needs its prediction.
    """

    def __init__(self, skip: bool, may_skip: bool = True) -> None:
        self.skip, self.may_skip = skip, may_skip
        self.reasons: dict[str, str] = {}  # place of a row, such as `train.csv line 7` -> what is wrong with it

    def add(self, place: str, reason: str) -> None:
        self.reasons.setdefault(place, reason)

    def check(self, rows: int) -> None:
        """Raise a UserError with the first five bad rows unless they are skipped; `rows` is the number of all rows."""
        if not self.reasons or (self.skip and len(self.reasons) < rows):
            return
        listed = "; ".join(f"{place}: {reason}" for place, reason in list(self.reasons.items())[:SHOWN])
        if len(self.reasons) == 1:
            raise UserError(f"{listed}; mend the row{', or give --data.on_bad_row skip' if self.may_skip else ''}.")
        more = "; ..." if len(self.reasons) > SHOWN else ""
        advice = (
            "mend them"
            if len(self.reasons) == rows or not self.may_skip
            else "mend them, or give --data.on_bad_row skip"
        )
        raise UserError(f"{len(self.reasons)} of {rows} rows cannot be used ({listed}{more}); {advice}.")
