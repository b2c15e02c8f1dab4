"""A student beside its memory: texts to queries, look-up, corrected answer, explanation. Needs no Ray."""
