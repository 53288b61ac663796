"""Talk with a model about a picture: `python -m chat_demo --checkpoint DIR --terminal`."""
