"""Adapters: fine-tuning strategies. One strategy per file; importing a class here makes it available."""

from litpeft.adapters.base import Adapter
from litpeft.adapters.dora import DoRA
from litpeft.adapters.full import Frozen, Full, Untrained
from litpeft.adapters.lora import LoRA
from litpeft.adapters.normalised_update import NormalisedUpdate
from litpeft.adapters.peft_method import Peft
from litpeft.adapters.qlora import QDoRA, QLoRA

__all__ = ["Adapter", "DoRA", "Frozen", "Full", "LoRA", "NormalisedUpdate", "Peft", "QDoRA", "QLoRA", "Untrained"]
