"""The one trainer: objectives, resuming, throughput."""
