"""Pictures to a prepared store of masks with words: objects, parts, several objects, and what is not there."""
