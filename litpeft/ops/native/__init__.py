"""C functions for training steps in bf16 on a CPU: fewer passes than torch, and products of any number of rows."""
