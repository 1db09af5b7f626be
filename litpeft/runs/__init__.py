"""The run folder: record, checkpoints, locks, and safe reading and writing."""
