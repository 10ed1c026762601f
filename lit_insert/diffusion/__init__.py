"""What several methods share about diffusion: noise, frozen parts, guidance, the feature cache."""
