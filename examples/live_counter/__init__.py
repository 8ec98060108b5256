"""A counter in each room that whoever is there changes and sees change; see README.md."""
