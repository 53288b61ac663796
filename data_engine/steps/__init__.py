"""The steps of the data engine, each a pure function of a picture's record and its pixels."""
