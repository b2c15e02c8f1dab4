"""The reference memory: points in a Qdrant collection, written once and read by their nearest neighbours.

One protocol (Qdrant's gRPC), two places it may live: a local server over the embedded engine, or a Qdrant cluster.
Knows points, vectors and neighbours; nothing of teachers, students or tensors.
"""
