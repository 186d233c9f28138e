"""Multimodal recommendation in JAX: raw items to embeddings to recommenders to honest tables."""

__version__ = "0.1.0"
