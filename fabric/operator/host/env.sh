# Sourced first thing by ~/.bashrc and by `run`: what Ray and the agent need to know on this host.
# `bin` comes first in PATH because `ray down` runs a bare `ray stop` on the head and leaves the workers running.
_fabric=$HOME/.fabric-operator
case ":$PATH:" in
*":$_fabric/host/bin:"*) ;;
*) export PATH="$_fabric/host/bin:$(readlink -f "$_fabric/venv" 2>/dev/null || echo "$_fabric/venv")/bin:$PATH" ;;
esac
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$_fabric/ray.token"
# A machine that vanishes is noticed within about twenty seconds (Ray: a minute).
export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=3000 RAY_health_check_failure_threshold=5
export RAY_USAGE_STATS_ENABLED=0 RAY_enable_metrics_collection=0
# A task that asks for no GPU must see none.
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1
# The head's own memory of the cluster survives a power cut; `ray down` deletes it.
export RAY_gcs_storage=rocksdb RAY_gcs_storage_path="$_fabric/gcs"
unset _fabric
