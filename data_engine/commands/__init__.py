"""The commands of `python -m data_engine`, one file each."""
