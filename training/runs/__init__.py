"""What each kind of training trains and writes; arguments and launching."""
