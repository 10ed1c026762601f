"""MIFO (Su et al. 2025): learn several instances from one picture, then place each by a box."""
