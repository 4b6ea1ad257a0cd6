"""The command line of SSVD, one file a command; it opens without torch.

At import, no module here imports anything but the standard library, typer, rich and `ssvd_options`. What a command
needs of `ssvd`, whose import takes seconds, is imported by the function that runs the command.
"""
