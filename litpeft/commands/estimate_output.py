"""The output of `litpeft estimate`: figures per strategy as tables, or as lines where a table does not fit."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from litpeft.profiling.memory import CATEGORIES
from litpeft.profiling.memory.cuda import workspaces
from litpeft.profiling.memory.trace import Trace
from litpeft.runs.strategy_names import shown_name

MIB, GIB = 2**20, 2**30


def figures(plan: Any, traces: list[Trace]) -> list[dict[str, Any]]:
    """Return the figures of each strategy: parameters, bytes, and on a GPU whether and up to which batch the run fits.

    On several devices all bytes but those of the parameters are of one device; with the peak by purpose, and the bytes
    that the device sends in each optimizer step.

    Args:
        plan: the `Plan` of the command.
        traces: one trace per adapter of the plan.
    """
    rows = []
    for adapter, trace in zip(plan.adapters, traces, strict=True):
        row = {"adapter": shown_name(adapter.name)}
        row |= {
            name: trace.counts[name] for name in ("trainable_params", "total_params", "adapter_bytes", "model_bytes")
        }
        most = max(trace.phases.values(), key=lambda phase: phase.tensors.bytes)
        row["peak_tensor_bytes"] = most.tensors.bytes
        if plan.devices.strategy != "one_device":
            row |= {"devices": plan.devices.count, "strategy": plan.devices.strategy}
            row |= {f"{name}_bytes": size for name, size in most.tensors.split.items()}
            row |= {"sent_bytes_per_step": trace.phases["train"].sent_bytes}
        if plan.limit is not None:
            needed = plan.needed(trace)
            row |= {"reserved_bytes": needed, "bytes_with_context": needed + plan.context, "device_bytes": plan.card}
            row |= {"fits": needed <= plan.limit}
            row |= {"largest_batch": plan.largest_batch(adapter, trace)} if plan.search else {}
            one_text = plan.search and len(traces) == 1 and "input_ids" in plan.batch
            row |= {"longest_row_tokens": plan.longest_rows(adapter, trace)} if one_text else {}
        rows.append(row)
    return rows


def show_tables(plan: Any, traces: list[Trace], rows: list[dict[str, Any]]) -> None:
    """Print the figures and the assumptions; a table that is wider than the terminal becomes one line per strategy."""
    console = Console()
    size = f"{plan.rows} x {plan.tokens} tokens" if "input_ids" in plan.batch else f"{plan.rows} images"
    shape = f"batches of {size} ({plan.source})"
    print(f"{type(plan.task).__name__}, {plan.task.model_name}, {plan.task.dtype_name}, {shape}")
    if plan.devices.strategy != "one_device":
        print(f"{plan.devices.count} devices, {plan.devices.strategy}; memory, batch and sent bytes of one device")
    if len(traces) == 1:
        _print_table(console, _split(plan, traces[0]))
    _print_table(console, _summary(plan, rows))
    for line in _assumptions(plan, traces):
        print(f"- {line}")


def _print_table(console: Console, table: Table) -> None:
    if Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width:
        console.print(table)
        return
    if table.title:
        print(table.title)
    columns = [list(column.cells) for column in table.columns]
    for cells in zip(*columns, strict=True):
        named = zip(table.columns[1:], cells[1:], strict=True)
        print(f"{cells[0]}: {', '.join(f'{column.header} {cell}' for column, cell in named)}")


def _split(plan: Any, trace: Trace) -> Table:
    """Return a table of peak memory by purpose and phase."""
    table = Table(title=f"peak memory of {shown_name(plan.adapters[0].name)}, MiB", title_justify="left")
    table.add_column("")
    for phase in trace.phases:
        table.add_column(phase.replace("_", " "), justify="right")
    peaks = list(trace.phases.values())
    rows = {name.replace("_", " "): [p.tensors.split[name] for p in peaks] for name in CATEGORIES}
    rows |= {"all tensors": [p.tensors.bytes for p in peaks]}
    if plan.device == "cuda":
        rows |= {"allocated": [p.allocated_bytes for p in peaks], "reserved so far": [p.reserved_bytes for p in peaks]}
    if plan.devices.strategy != "one_device":
        rows |= {"sent": [p.sent_bytes for p in peaks]}
    for name, sizes in rows.items():
        if any(sizes):
            table.add_row(name, *(f"{size / MIB:,.1f}" for size in sizes))
    return table


def _summary(plan: Any, rows: list[dict[str, Any]]) -> Table:
    """Return a table with one row per strategy: trainable parameters, memory, and whether the run fits."""
    table = Table()
    columns = ["adapter", "trainable", "parameters", "checkpoint MiB", "model MiB", "peak tensors MiB"]
    columns += ["sent MiB per step"] if "sent_bytes_per_step" in rows[0] else []
    if plan.limit is not None:
        columns += ["reserved MiB", "with context MiB", f"of {plan.card / GIB:,.1f} GiB"]
        shape = f"largest batch at {plan.tokens} tokens" if "input_ids" in plan.batch else "largest batch"
        columns += [shape] if "largest_batch" in rows[0] else []
        columns += [f"longest row at batch {plan.rows}"] if "longest_row_tokens" in rows[0] else []
    for column in columns:
        table.add_column(column, justify="left" if column == "adapter" else "right", no_wrap=True)
    sizes = ["adapter_bytes", "model_bytes", "peak_tensor_bytes", "sent_bytes_per_step"]
    sizes += ["reserved_bytes", "bytes_with_context"]
    for row in rows:
        cells = [row["adapter"], f"{row['trainable_params']:,}", f"{row['total_params']:,}"]
        cells += [f"{row[name] / MIB:,.1f}" for name in sizes if name in row]
        if "fits" in row:
            cells += ["fits" if row["fits"] else "does not fit"]
            cells += [f"{row[name]:,}" for name in ("largest_batch", "longest_row_tokens") if name in row]
        table.add_row(*cells)
    return table


def _assumptions(plan: Any, traces: list[Trace]) -> list[str]:
    """Return the assumptions behind the figures, one sentence each."""
    lines = ["traced: two optimizer steps and one validation batch of the code of fit, on meta tensors"]
    if plan.later is not None:
        tokens = plan.later.get("input_ids", plan.later["labels"]).shape[-1]
        lines += [
            f"one epoch: the optimizer has no state yet in the longest batch; later ones have at most {tokens} tokens"
        ]
    lines += ["assumed: two classes, because --data.label_names is not given"] if plan.classes_assumed else []
    if plan.tensors_unknown:
        lines += ["assumed: no tensor of the base is missing in the weight files, which are not on this machine"]
        lines += ["not counted: a pooler that the files lack, which fit would initialise and train"]
    if any(trace.has_experts for trace in traces):
        lines += ["assumed: each expert gets the same number of tokens; uneven routing needs some per cent more"]
    lines += _of_several(plan, traces)
    if plan.device == "cpu":
        return [*lines, "not counted: Python, the libraries, and temporary memory inside kernels"]
    context, cublas = plan.context // MIB, sum(workspaces(plan.capability)) / MIB
    lines += [
        "quantised weights are dequantised one layer at a time; logits are computed in chunks",
        f"modelled: torch's caching allocator, and {cublas:.1f} MiB of cuBLAS workspaces",
        f"assumed: a CUDA context of {context} MiB, flash attention for batches without padding",
        "not modelled: fragmentation by batches of other shapes, which adds a few per cent to the reserved memory",
    ]
    if plan.limit is not None:
        usable = (plan.limit + plan.context) / GIB
        lines += [
            f"fits: reserved memory and context within {usable:,.2f} GiB, the usable part of {plan.card / GIB:,.1f}"
        ]
    return lines


def _of_several(plan: Any, traces: list[Trace]) -> list[str]:
    """Return the assumptions of a run on several devices, one sentence each."""
    if plan.devices.strategy == "one_device":
        return []
    lines = ["sent: by rings, (devices - 1) / devices of what is gathered or reduced, and twice that with ddp"]
    if plan.devices.strategy == "fsdp2" and any("quantised" in trace.counts for trace in traces):
        lines += ["fsdp2 does not shard quantised weights: each device holds all of them"]
    return [*lines, "not counted: buffers that NCCL or gloo allocate for themselves, outside of torch's allocator"]
