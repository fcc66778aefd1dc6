"""Weights in files: read without running code, translated from published names, exported for timm."""
