"""Training: the loop, its optimiser, checkpoints that are whole or absent, and tracking that never slows it."""
