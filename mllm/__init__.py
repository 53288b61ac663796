"""The multimodal LLM: encodes a picture at three granularities and generates text. Imports nothing of uniresxx."""
