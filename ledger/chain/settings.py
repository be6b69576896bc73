"""Which chain a process uses, and with which key: read from the environment once, at the edge."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ChainSettings(BaseSettings):
    """Keys ``FABRIC_CHAIN_*``. Without a URL there is no chain: epochs close and are not settled.

    Attributes:
        url: the chain's JSON-RPC address.
        addresses: the address book that `deploy` wrote.
        keystore: an encrypted key file (Web3 Secret Storage, as geth and others write it).
        keystore_password: opens the keystore.
        key: the private key itself, 0x and 64 digits, for those who have no keystore.
        confirmations: a block is final when so many blocks stand on it.
    """

    model_config = SettingsConfigDict(env_prefix="FABRIC_CHAIN_", frozen=True, extra="ignore")

    url: str | None = None
    addresses: Path | None = None
    keystore: Path | None = None
    keystore_password: SecretStr | None = None
    key: SecretStr | None = None
    confirmations: int = Field(default=12, ge=1)

    @property
    def has_chain(self) -> bool:
        """Whether a chain is configured; half of it is refused where it is opened."""
        return self.url is not None or self.addresses is not None

    @property
    def has_key(self) -> bool:
        return self.keystore is not None or self.key is not None
