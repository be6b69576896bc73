"""The agent's settings: one JSON file, named by `FABRIC_AGENT_CONFIG`. Read once; frozen."""

import ipaddress
import json
from ipaddress import ip_network
from pathlib import Path
from typing import Literal

from nacl.encoding import HexEncoder
from nacl.signing import SigningKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from fabric.agent.simulated import parse
from fabric.wire.keys import refuse_unknown


class ConfigError(ValueError):
    """The agent's configuration cannot be used; the message names the file, the key and what to do."""


class AgentEnvironment(BaseSettings):
    """Keys of the environment."""

    model_config = SettingsConfigDict(env_prefix="FABRIC_", frozen=True, extra="ignore")

    agent_config: Path | None = None
    """`FABRIC_AGENT_CONFIG`: path of the JSON file with `AgentSettings`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """`FABRIC_LOG_LEVEL`: least serious kind of log line that is written."""


class AgentSettings(BaseModel):
    """The JSON file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(pattern=r"^https?://")
    """The control plane."""
    operator: str
    """This operator's id."""
    cluster: str
    """This cluster's name, unique for the operator."""
    region: str = ""
    location: str = Field(default="", pattern=r"^(-?\d{1,2}(\.\d+)?,-?\d{1,3}(\.\d+)?)?$")
    """Where it stands, "latitude,longitude" in degrees; empty where that is not to be known."""
    session_key_file: Path
    """Ed25519 seed of 32 bytes as 64 hexadecimal digits; must be readable by its owner alone."""
    state_dir: Path
    """Receipts not yet acknowledged, and on each node its journal."""
    ray_address: str
    """`host:port` of the cluster's head."""
    ray_allow: tuple[str, ...] | None = None
    """Addresses and networks, beyond private ones, at which Ray's ports may answer; None: not looked at (embedded)."""
    gateway_host: str = "127.0.0.1"
    """Address on which customers' connections are taken."""
    gateway_port: int = Field(default=0, ge=0, le=65535)
    """Their port; 0 takes a free one."""
    gateway_url: str = ""
    """How customers reach the gateway, where it is not `wss://<gateway_host>:<gateway_port>/v1/channel`."""
    gateway_tls: bool = True
    """Whether the gateway speaks TLS with a certificate that it makes itself; without it, only on loopback or behind
    `gateway_url`, where something else speaks TLS for it."""
    gateway_direct: bool = True
    """Whether customers may reach the gateway at its address; False where only the relay of the control plane does."""
    isolation: Literal["none", "bubblewrap"] = "none"
    """What stands between a customer's code and the node; `none` only for the operator's own code."""
    networks: tuple[Literal["gang", "hosts", "open"], ...] = ("gang",)
    """What runs may ask for beside no network; `hosts` and `open` let strangers reach public addresses from here."""
    private_networks: tuple[str, ...] = ()
    """Networks that are not public and that hosts which a run lists may lie in; others are closed to every run."""
    pip_index: str = ""
    """Where runs' packages come from; empty for PyPI, without isolation for this machine's configuration of pip."""
    pip_find_links: str = ""
    """A folder of wheels on every node; with an empty `pip_index` nothing else is looked at."""
    pip_hosts: tuple[str, ...] = ("files.pythonhosted.org",)
    """Hosts that the index's files lie on, where they are not the index's own."""
    env_cache_bytes: int = Field(default=100 << 30, ge=1 << 20)
    """Room on each node for installed packages; the longest unused go first."""
    prices: dict[str, dict[str, int]]
    """{model: {tier: DC per GPU-hour}}."""
    simulated_gpus: str = ""
    """Offered by nodes without real GPUs: `H100:2,L4:2`; empty for none."""
    warm_children: int = Field(default=1, ge=0, le=16)
    """Children kept ready on each node beside those in use."""
    warm_modules: tuple[str, ...] = ()
    """Modules that children import before they are needed, for example `numpy`; missing ones are left out."""

    @model_validator(mode="after")
    def _private(self) -> "AgentSettings":
        if not self.gateway_tls and not self.gateway_url and not _is_loopback(self.gateway_host):
            raise ValueError(
                f"gateway_tls is false and gateway_host is {self.gateway_host}: customers' data would travel in the "
                "clear; leave gateway_tls out, or name what speaks TLS for it in gateway_url"
            )
        return self

    @field_validator("private_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(one)) for one in value)

    @field_validator("pip_index")
    @classmethod
    def _index(cls, value: str) -> str:
        if value and not value.startswith(("https://", "http://", "file://")):
            raise ValueError("an index is an address such as https://pypi.org/simple")
        return value

    @field_validator("simulated_gpus")
    @classmethod
    def _readable(cls, value: str) -> str:
        parse(value)
        return value

    def session_key(self) -> SigningKey:
        """The key that signs receipts.

        Raises:
            ConfigError: the file is missing, open to others, or holds no key.
        """
        path = self.session_key_file
        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(f"the session key {path} is readable by others; run: chmod 600 {path}")
            return SigningKey(path.read_text(encoding="ascii").strip().encode(), HexEncoder)
        except OSError as error:
            raise ConfigError(f"the session key {path} cannot be read: {error}") from None
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{path} holds no session key: 64 hexadecimal digits are wanted") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load(environ: dict[str, str]) -> tuple[AgentEnvironment, AgentSettings]:
    """What the environment and the file it names say.

    Raises:
        ConfigError: a key that nobody knows, no file, or a file with a wrong member.
    """
    try:
        refuse_unknown(environ)
        environment = AgentEnvironment()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    path = environment.agent_config
    if path is None:
        raise ConfigError("FABRIC_AGENT_CONFIG is not set; it names the agent's JSON file")
    try:
        return environment, AgentSettings.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
