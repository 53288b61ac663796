"""Region proposals: where the object and part boxes of a picture come from."""
