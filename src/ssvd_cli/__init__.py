"""The command line of SSVD, one file a command; it opens without torch."""
