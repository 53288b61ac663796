"""The page of `python -m chat_demo`: chat, correction and comparison in a browser (the only gradio)."""
