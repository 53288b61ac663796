"""The prepared store: a memory-mapped Arrow file of records, and the photos it refers to."""
