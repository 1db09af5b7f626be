"""The options of `litpeft estimate` that say on how many devices the run will be: `--devices --nodes --strategy`."""

from __future__ import annotations

from typing import Any, Literal

from litpeft.errors import UserError
from litpeft.profiling.memory.devices import Devices


def add_device_options(parser: Any) -> None:
    """Add short names for `trainer.devices`, `trainer.num_nodes` and `trainer.strategy`."""
    parser.add_argument(
        "--devices", type=int | None, help="devices per machine, each with a process (default: trainer.devices)"
    )
    parser.add_argument("--nodes", type=int | None, help="machines (default: trainer.num_nodes)")
    parser.add_argument(
        "--strategy",
        type=Literal["ddp", "fsdp2"] | None,
        help="ddp: each device holds the whole model; fsdp2: a shard of every parameter (default: trainer.strategy)",
    )


def use_short_names(options: Any) -> None:
    """Set the trainer's options to those given by short names.

    Raises:
        UserError: a number is less than 1, or the number of devices cannot be known.
    """
    trainer = options.trainer
    for name, short in (("devices", options.devices), ("num_nodes", options.nodes), ("strategy", options.strategy)):
        if short is not None:
            trainer[name] = short
    trainer.devices = _per_machine(trainer.devices)
    for name, count in (("devices", trainer.devices), ("nodes", trainer.num_nodes)):
        if count < 1:
            raise UserError(f"--{name} must be at least 1, got {count}.")


def devices_of(trainer: Any) -> Devices:
    """Return the devices that the options of a trainer name, after `use_short_names`."""
    count = trainer.devices * trainer.num_nodes
    if trainer.strategy == "fsdp2":
        return Devices(count, "fsdp2")
    return Devices(count, "one_device" if count == 1 and trainer.strategy == "auto" else "ddp")


def _per_machine(given: Any) -> int:
    """Return the number of devices that `trainer.devices` means: a number, or a list of devices."""
    if isinstance(given, str) and "," in given:
        given = [each for each in given.split(",") if each.strip()]
    if isinstance(given, list):
        return len(given)
    try:
        return int(given)
    except ValueError:
        raise UserError(f"trainer.devices {given}: an estimate needs a number, such as --devices 8.") from None
