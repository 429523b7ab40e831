"""`python -m webhook` is the command `driftgate`."""

from webhook.cli import main

if __name__ == "__main__":
    main()
