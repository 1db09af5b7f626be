"""Adapters: how a base model is made trainable. A folder's file is an adapter; its import here makes it known."""

from litpeft.adapters.base import Adapter
from litpeft.adapters.dora import DoRA
from litpeft.adapters.full import Frozen, Full
from litpeft.adapters.lora import LoRA
from litpeft.adapters.qlora import QDoRA, QLoRA

__all__ = ["Adapter", "DoRA", "Frozen", "Full", "LoRA", "QDoRA", "QLoRA"]
