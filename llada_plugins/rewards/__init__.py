"""Process reward models, and the review of blocks that uses them."""
