"""The command line: arguments, exit codes, and what is shown of a result. Computes nothing."""
