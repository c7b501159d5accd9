"""What the harnesses say and do not say: their templates, caches, records and tasks."""
