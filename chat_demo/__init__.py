"""Talk with a model about a picture, on a page or in the terminal: `python -m chat_demo [--terminal]`."""
