"""Data: annotation files and drawn scenes become ImageRecords, and ImageRecords become training batches.

`readers` reads native annotation files, one file per format. `scenes` draws the embedded benchmark. `store` keeps
records in one memory-mapped file. `catalog` turns NAME/SPLIT into records. `mixture` orders them for training.
Only `mixture.batches` needs torch.
"""
