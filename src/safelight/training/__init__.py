"""Training recipes: how the embedded model `mini` was made from nothing, and how to go on."""
