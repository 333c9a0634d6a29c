"""Files, processes, standard input and output, and the user's account."""
