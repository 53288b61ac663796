"""LISA and GSVA as released: LLaVA's language model whose state before [SEG] prompts SAM."""
