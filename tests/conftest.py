from hypothesis import settings

# A slow machine is no fault of the code.
settings.register_profile("faquant", deadline=None)
settings.load_profile("faquant")
