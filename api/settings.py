"""The control plane's settings: one frozen class, read once from the environment (`FABRIC_` keys) where it starts."""

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from fabric.wire.bands import Band, read_bands
from ledger.settings import LedgerSettings

USD_E18_PER_DC = 10**13
"""1 DC = USD 0.00001."""


class Settings(BaseSettings):
    """Every key that a control plane reads."""

    model_config = SettingsConfigDict(env_prefix="FABRIC_", frozen=True, extra="ignore")

    host: str = Field(default="127.0.0.1", description="Address to listen on; loopback unless told otherwise.")
    port: int = Field(
        default=8700, ge=0, le=65535, description="Port to listen on; taken is refused; 0 picks a free one."
    )
    state_dir: Path = Field(
        default=Path("fabric-control"), description="Folder of keys, blobs, logs and the SQLite database; made 0700."
    )
    database_url: str = Field(
        default="", description="SQLAlchemy URL; empty: SQLite, `fabric.db` in the state directory."
    )
    bootstrap: Path | None = Field(
        default=None, description="JSON file that declares customers and operators (docs/protocol.md); read at start."
    )
    public_url: str = Field(
        default="",
        pattern=r"^(https?://[^/]+)?$",
        description="How others reach this very process, where several share one database: relay routes name it.",
    )
    serving_url: str = Field(
        default="",
        pattern=r"^(https?://[^/]+)?$",
        description="How customers reach the serving router; empty: there is none, and nothing can be served.",
    )
    allow_simulated: bool = Field(default=False, description="Whether agents may offer simulated GPUs.")
    challenges: bool = Field(
        default=False, description="Whether GPUs are challenged to prove what they are, at idle moments."
    )
    gpu_bands: Path | None = Field(
        default=None,
        description="JSON file of measured challenge bands by model (docs/verification.md); read at start.",
    )
    log_level: str = Field(default="info", description="debug, info, warning or error.")
    finality_s: float = Field(default=600.0, ge=0, description="Seconds after which accepted usage cannot be undone.")
    epoch_s: int = Field(default=86_400, ge=1, description="Length of an epoch in seconds.")
    pool_exit_delay_epochs: int = Field(
        default=7, ge=0, le=365, description="Epochs that a GPU stays in its pool after leaving, and that terms wait."
    )
    test_bct_price_dc: int = Field(
        default=10_000, ge=1, description="DC per BCT, used and marked `test` while no chain gives a price."
    )
    blob_quota_bytes: int = Field(default=1 << 30, ge=0, description="Bytes of blobs that one customer may keep.")
    blob_large_quota_bytes: int = Field(
        default=10 << 30, ge=0, description="The same for a customer whose leases were charged `blob_large_after_dc`."
    )
    blob_large_after_dc: int = Field(default=1_000_000, ge=0, description="DC of use; the default is USD 10.")
    max_blob_bytes: int = Field(default=1 << 30, ge=1, description="The largest single blob.")

    @property
    def sqlalchemy_url(self) -> str:
        """The database's URL, with the default filled in."""
        return self.database_url or f"sqlite:///{self.state_dir.absolute() / 'fabric.db'}"

    @field_validator("gpu_bands")
    @classmethod
    def _readable(cls, path: Path | None) -> Path | None:
        if path is not None:
            try:
                read_bands(path.read_text())
            except OSError as error:
                raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        return path

    @property
    def bands(self) -> dict[str, Band]:
        """The measured bands as the file says now."""
        return read_bands(self.gpu_bands.read_text()) if self.gpu_bands is not None else {}

    @property
    def ledger(self) -> LedgerSettings:
        """The ledger's own settings."""
        return LedgerSettings(
            final_after_ms=round(self.finality_s * 1000),
            epoch_ms=self.epoch_s * 1000,
            test_price_usd_e18=self.test_bct_price_dc * USD_E18_PER_DC,
        )
