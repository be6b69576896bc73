"""One runnable file each: what the documentation shows."""
