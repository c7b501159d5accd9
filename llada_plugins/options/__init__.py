"""Options as frozen dataclasses, and the command lines made of them. Standard library only."""
