"""Commands, one file each, and the arguments of all of them."""
