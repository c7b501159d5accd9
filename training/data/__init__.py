"""From files to rows to batches."""
