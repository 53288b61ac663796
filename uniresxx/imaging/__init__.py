"""Pictures in, masks, geometry of the letterbox, and pictures out. Imports no model."""
