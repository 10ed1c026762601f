"""Objects placed by words, fused in a representation's feature space, finished by a diffusion transformer."""
