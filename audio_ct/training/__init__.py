"""Training: the loop, its optimizer, and tracking that never slows it."""
