"""The METHODS table: a file for each method, and the trained add-ons that methods load."""
