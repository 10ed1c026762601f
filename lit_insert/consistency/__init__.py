"""Consistency models: few-step generators, distilled from a diffusion model or trained from data alone."""
