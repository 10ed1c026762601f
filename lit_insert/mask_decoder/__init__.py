"""Masks from photos: a hierarchical transformer, a feature pyramid, logits at the picture's own size."""
