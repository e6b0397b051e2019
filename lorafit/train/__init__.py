"""Training: an explicit loop on accelerate, exact to the token and to the bit."""
