"""`python -m codec COMMAND`: the commands, where none are installed."""

from codec.commands.main import main

if __name__ == "__main__":
    main()
