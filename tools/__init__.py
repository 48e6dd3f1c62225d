"""Programs for those who work on fastrnn."""
