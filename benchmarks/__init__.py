"""Benchmarks of statemgr beside what a user would pick instead; see README.md."""
