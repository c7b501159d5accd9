"""Files that appear whole or not at all, and readers that name what is wrong in one."""
