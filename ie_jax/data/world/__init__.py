"""The embedded world: captioned scenes drawn from a seed, and exact results of edits of them."""
