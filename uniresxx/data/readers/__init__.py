"""Readers of native annotation files, one file per format; each returns ImageRecords or raises InputError.

Nothing is repaired silently. A wrong record raises InputError with its name. A record that cannot be scored (its
only target is a crowd, its text is blank) is left out and reported through `logging`.
"""
