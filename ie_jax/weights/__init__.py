"""From published files to weight trees: fetch, read, rename, check, cache; and back."""
