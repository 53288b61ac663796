"""The plain baseline of every comparison: a convolutional U-Net steered by text through FiLM."""
