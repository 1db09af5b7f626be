"""litpeft: what each way to fine-tune costs in memory and time, what it gives, and whether the difference is real."""

__version__ = "0.1.0"
