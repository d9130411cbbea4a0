"""The command line: every command builds a config, calls one library function and prints."""
