"""Training data: which record each slot shows, mirrored pictures, and batches. Only `mix.py` imports grain."""
