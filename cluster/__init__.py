"""What deploys the project: a local Ray cluster, and the sizes, checks and monitoring of a deployment."""
