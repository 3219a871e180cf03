"""How good a model is, in numbers that somebody else's network gives."""
