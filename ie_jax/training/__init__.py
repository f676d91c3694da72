"""Training: losses, the step, the loop, and what a long run needs around them."""
