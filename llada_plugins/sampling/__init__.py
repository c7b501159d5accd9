"""The decode loop: what it trusts, and how many tokens it keeps."""
