"""Checkpoint files: tensors, verified folders, and which folder a name means. Knows no model class."""
