"""What all tests share: hypothesis without deadlines, because machines are shared and timings noisy."""

from hypothesis import HealthCheck, settings

settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
