"""Applications that show how statemgr is used."""
