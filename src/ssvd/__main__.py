"""`python -m ssvd`: the command `ssvd`."""

from ssvd_cli.main import main

main()
