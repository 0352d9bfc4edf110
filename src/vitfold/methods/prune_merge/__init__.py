"""Prune and Merge: matrices that mix patches, alike for all images."""
