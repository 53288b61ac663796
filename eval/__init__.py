"""Evaluation programs: run a model on a benchmark, score any predictions, write a report page."""
