"""What made a result, whether it can be made again, and how it stands to what is published."""
