"""Data: native annotation files and drawn scenes to ImageRecords, and from there to batches.

`readers` holds one file per native format, `benchmarks` turns NAME/SPLIT into records, `scenes` draws the
embedded benchmark. Nothing here imports torch until a batch is made.
"""
