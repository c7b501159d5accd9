"""What a report measures, and how it is drawn."""
