"""Evaluation of any Segmenter: ask, write predictions down, score what was written."""
