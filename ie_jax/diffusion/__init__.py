"""The noise schedule, the consistency step, inversion and generation."""
