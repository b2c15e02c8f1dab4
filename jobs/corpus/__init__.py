"""A corpus on disk: read by parts, then prepared as random-access files."""
