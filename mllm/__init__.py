"""The multimodal LLM: sees a picture at three granularities and speaks. Imports nothing of uniresxx."""
