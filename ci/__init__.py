"""Scripts that set up, show and test the project; see ``ci/bootstrap --help``."""
