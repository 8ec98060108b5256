"""Each backend beside a model of it."""
