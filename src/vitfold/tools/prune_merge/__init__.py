"""The search for a PruneMerge: which patches matter, and rates that cost a share of the FLOPs."""
