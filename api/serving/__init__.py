"""The serving router: a process of its own that gives each endpoint its URL, and its replicas their requests.

Towards the control plane it is a customer's process like any other, through the SDK; what it knows beyond that it reads
from, and reports to, `/v1/serving`.
"""
