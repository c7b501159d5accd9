"""Masked diffusion itself: forward process, the Denoiser seam, guidance, caches, random streams."""
