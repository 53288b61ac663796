"""LISA, GSVA and M2SA as released: LLaVA's language model whose state before [SEG] prompts SAM."""
