"""Pictures and texts for people, from plans and files."""
