"""Mask heads: from the state at [SEG] to mask logits."""
