"""Run on a cluster: a local Ray cluster, and size, checks and monitoring of a deployment."""
