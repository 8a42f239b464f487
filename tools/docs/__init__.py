"""What the documentation is generated with: the reference of the command line."""
