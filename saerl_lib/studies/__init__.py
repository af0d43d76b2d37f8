"""Studies of the method; the core imports none of them."""
