"""Training data: which image a slot shows, its augmentation, and batches. The only use of grain."""
