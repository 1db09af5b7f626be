"""litpeft: what each way to fine-tune costs in memory and time, what it gives, and whether the difference is real.

In Python (docs/python.md):

    from litpeft import LoRA, SequenceClassification, SST2, compare, fit, load_run

Names are imported when they are first used, so that `import litpeft` takes no time; editors read `__init__.pyi`.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

__version__ = "0.1.0"

PLACES = {  # module -> names that `from litpeft import ...` gives
    "litpeft.adapters": (
        *("Adapter", "DoRA", "Frozen", "Full", "LoRA", "NormalisedUpdate", "Peft", "QDoRA", "QLoRA", "Untrained"),
    ),
    "litpeft.tasks": (
        *("CausalLM", "FineTuner", "ImageClassification", "Seq2SeqLM"),
        *("SequenceClassification", "SequenceMultiLabel", "SequenceRegression"),
    ),
    "litpeft.data": (
        *("AGNews", "Alpaca", "ArithmeticInstructions", "Conversations", "FineTuneData", "Food101", "GLUE", "IMDB"),
        *("ImageFolder", "SST2", "Text", "TextClassification", "TextMultiLabel", "TextRegression"),
    ),
    "litpeft.api.runs": ("Run", "fit", "load_run"),
    "litpeft.api.comparisons": ("Comparison", "compare", "sweep"),
    "litpeft.errors": ("UserError",),
}
__all__ = sorted(name for names in PLACES.values() for name in names)


def __getattr__(name: str) -> Any:
    place = next((module for module, names in PLACES.items() if name in names), None)
    # jsonargparse looks for the shortest path of a class; run folders name classes by litpeft.data.SST2 and so on
    if place is None or sys._getframe(1).f_code.co_name == "get_import_path":
        raise AttributeError(f"module 'litpeft' has no attribute {name!r}")
    return getattr(importlib.import_module(place), name)  # not kept in this module, for the same reason


def __dir__() -> list[str]:
    return [*globals(), *__all__]
