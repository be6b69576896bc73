"""`fabric demo`: the whole economy once on this machine, explained."""

from workloads.demo.command import app

__all__ = ["app"]
