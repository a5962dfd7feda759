"""`python -m docsum` is the command `docsum`."""

from docsum.cli import main

main()
