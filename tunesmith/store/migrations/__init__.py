"""The schema's history. A revision is one numbered file in versions/; schema.HEAD names the newest."""
