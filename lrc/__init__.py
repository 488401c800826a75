"""Local routing consistency of Mixture-of-Experts language models."""
