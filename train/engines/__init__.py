"""Engines: one process, DDP, and DeepSpeed ZeRO behind one interface."""
