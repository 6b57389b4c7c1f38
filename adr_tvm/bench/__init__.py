"""Side-by-side timing against other engines."""
