"""`python -m mocoembed` is the command `mocoembed`."""

from mocoembed.cli.main import main

if __name__ == "__main__":
    main()
