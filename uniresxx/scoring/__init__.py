"""Predictions files, protocols, metrics and intervals. Imports neither torch nor a model."""
