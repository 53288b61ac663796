"""Data: native annotation files and drawn scenes to ImageRecords, and from there to batches.

`readers` holds one file per native format, `catalog` turns NAME/SPLIT into records, `store` holds prepared ones,
`mixture` draws from them for training, `scenes` draws the embedded benchmark. Only batches need torch.
"""
