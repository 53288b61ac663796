"""Models that turn photos and texts into masks, and the table that finds the class of a checkpoint."""
