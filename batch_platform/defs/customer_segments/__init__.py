"""A demo: its page is README.md."""
