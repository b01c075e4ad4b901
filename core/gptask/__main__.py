"""`python -m gptask`."""

from gptask.cli import main

if __name__ == "__main__":
    main()
