"""Ratio benchmarks: `python -m benchmarks.NAME`, one file each; recorded rows lie in `benchmarks/results/`."""
