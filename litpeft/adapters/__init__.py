"""Adapters: how a base model is made trainable. A folder's file is an adapter; its import here makes it known."""

from litpeft.adapters.base import Adapter
from litpeft.adapters.full import Frozen, Full
from litpeft.adapters.lora import LoRA

__all__ = ["Adapter", "Frozen", "Full", "LoRA"]
