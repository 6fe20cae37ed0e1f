"""What a cancellation token costs, measured against the same thing without one. `python -m benchmarks`."""
