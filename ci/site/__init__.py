"""The documentation site: its pages put together, built by Sphinx, its links followed."""
