"""UniRES (CVPR 2024, arXiv 2312.08007): CLIP with group tokens of two levels, steered by the expression."""
