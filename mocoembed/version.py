"""The version, read by `setup.py` and stamped into every file that the tool writes."""

__version__ = "0.1.0"
