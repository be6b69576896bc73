"""What a pool operator runs: enrolling, the cluster file, the commands on the hosts, and the doctor.

`cluster.yaml` is Ray's own cluster launcher file; its `provider.fabric` section is ours. The scripts in `host/` are
mounted on every host and call this package there. It does not speak with customers or the control plane's link: the
agent does.
"""
