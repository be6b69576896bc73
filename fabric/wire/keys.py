"""The names of all configuration keys, and the refusal of keys that nobody knows.

Each key is documented in the settings class that reads it; this table only says which exist, so that a mistyped
`FABRIC_` key is an error wherever it is set, and says what was probably meant.
"""

import difflib
from collections.abc import Mapping

KNOWN_KEYS = frozenset(
    {
        # everybody
        "FABRIC_URL",
        "FABRIC_API_KEY",
        "FABRIC_HOME",
        "FABRIC_QUIET",
        # the embedded fabric
        "FABRIC_EMBEDDED_LINGER_S",
        "FABRIC_EMBEDDED_NODES",
        "FABRIC_SIMULATED_GPUS",
        "FABRIC_ISOLATION",
        # control plane
        "FABRIC_DATABASE_URL",
        "FABRIC_HOST",
        "FABRIC_PORT",
        "FABRIC_PUBLIC_URL",
        "FABRIC_STATE_DIR",
        "FABRIC_SERVING_URL",
        "FABRIC_SERVING_IDLE_S",
        "FABRIC_BOOTSTRAP",
        "FABRIC_ALLOW_SIMULATED",
        "FABRIC_FINALITY_S",
        "FABRIC_EPOCH_S",
        "FABRIC_DISPUTE_WINDOW_S",
        "FABRIC_POOL_EXIT_DELAY_EPOCHS",
        "FABRIC_TEST_BCT_PRICE_DC",
        "FABRIC_BLOB_LARGE_AFTER_DC",
        "FABRIC_BLOB_LARGE_QUOTA_BYTES",
        "FABRIC_BLOB_QUOTA_BYTES",
        "FABRIC_CHALLENGES",
        "FABRIC_GPU_BANDS",
        "FABRIC_MAX_BLOB_BYTES",
        "FABRIC_LOG_LEVEL",
        # chain
        "FABRIC_CHAIN_URL",
        "FABRIC_CHAIN_ADDRESSES",
        "FABRIC_CHAIN_KEYSTORE",
        "FABRIC_CHAIN_KEYSTORE_PASSWORD",
        "FABRIC_CHAIN_KEY",
        "FABRIC_CHAIN_CONFIRMATIONS",
        # agent
        "FABRIC_AGENT_CONFIG",
        # set by the agent for a job, never by a person
        "FABRIC_JOB_CHECKPOINT_DIR",
        "FABRIC_JOB_FD",
    }
)


class UnknownKey(ValueError):
    """A `FABRIC_` key that no settings class reads."""


def refuse_unknown(environ: Mapping[str, str]) -> None:
    """Raise when the environment holds a `FABRIC_` key that does not exist.

    Raises:
        UnknownKey: names the key and the nearest known one.
    """
    for key in sorted(environ):
        if key.startswith("FABRIC_") and key not in KNOWN_KEYS:
            near = difflib.get_close_matches(key, KNOWN_KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(KNOWN_KEYS))}"
            raise UnknownKey(f"{key} is set but nothing reads it; {hint}")
