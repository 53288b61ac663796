"""Anybody's own data: what annotation tools write, read into the records of a store."""
