"""`python -m ie_jax.studio`."""

from ie_jax.studio.command import main

main()
