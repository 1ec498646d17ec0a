"""Stable Diffusion: pipelines, what they draw, and steps that leave other prompts alone. Imports no diffusers."""
