"""The reference memory: points in a Qdrant collection, written once and read by their nearest neighbours.

One protocol (Qdrant's gRPC) and two kinds of server: a local one over the embedded engine, or a Qdrant cluster.
Knows points, vectors and neighbours; nothing of teachers, students or tensors.
"""
