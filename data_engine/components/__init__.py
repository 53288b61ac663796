"""Models that take the roles of the data engine."""
