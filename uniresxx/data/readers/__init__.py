"""Readers of native annotation files, one file per format; each returns ImageRecords or raises InputError.

Data errors are never repaired silently: a record that cannot be right is refused by name, one that is right
but can not be scored (its only target is a crowd, its text is blank) is left out and reported through
`logging`.
"""
