"""Child processes that look into training files for the API: JSON lines out, killed when nobody reads them. No torch here."""
