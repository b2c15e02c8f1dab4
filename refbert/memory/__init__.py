"""A student beside its memory: points and queries, look-up, corrected answers, explanation, adapting. Needs no Ray."""
