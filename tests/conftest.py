"""For all rungs: no test passes or fails by its own time."""

from hypothesis import settings

settings.register_profile("vdcm", deadline=None)
settings.load_profile("vdcm")
