"""What `python -m benchmarks` can be told to do, one module for each command."""
