"""The contract on each backend, and mutants that show it finds what it is to find."""
