"""The tests mirror the package; recordings of a real API server are in `reviews/`."""
