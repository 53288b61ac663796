"""Public models of transformers as Segmenters, one file per family; docs/public_models.md names the weights."""
