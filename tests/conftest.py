"""What all tests share: hypothesis without deadlines, because machines are shared and timings noisy.

`pytest --hypothesis-profile thorough` asks for thousands of examples instead of hundreds.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("shared"), max_examples=9000)
settings.load_profile("shared")
