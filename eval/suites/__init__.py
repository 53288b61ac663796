"""Segmentation from words as tasks of other people's harnesses; `lmms_tasks/` is lmms-eval's folder."""
