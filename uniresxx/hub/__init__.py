"""UniRES++ for transformers and the Hugging Face Hub: classes, model card, exports."""
