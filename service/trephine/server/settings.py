"""Settings of a server: flags win over `TREPHINE_*` variables, which win over a TOML file."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from trephine.domain.errors import InvalidRequestError
from trephine.server.places import default_cache, default_state


class Settings(BaseSettings):
    """Everything that can be chosen about a server."""

    model_config = SettingsConfigDict(
        env_prefix="TREPHINE_", env_ignore_empty=True, extra="forbid", frozen=True
    )

    state: Path = Field(default_factory=default_state)
    """State folder; one server owns it."""
    cache: Path = Field(default_factory=default_cache)
    """Cache folder; its sub folder `models` is always a model root, `replacements` a replacement root."""
    listen: str | None = None
    """`HOST:PORT` to serve beside the Unix socket; port 0 takes a free one."""
    token_file: Path | None = None
    """Bearer token for `listen`, in a file that only its owner can read; made if it is not there.
    Unset: `token` in the state folder."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure_listen: bool = False
    """Allow an address other than loopback without TLS."""
    model_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders whose sub folders are models; in the environment separated as in PATH."""
    replacement_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders whose sub folders are replacement sets; in the environment separated as in PATH."""
    export_root: Path | None = None
    """Where exports are published; unset: inside the state folder."""
    signing_key: Path | None = None
    """PEM private key (P-256) that signs exports."""
    sigstore_token_file: Path | None = None
    """Identity token for exports that are signed with Sigstore and bring none; read anew for each. Unset:
    what the environment offers, as CI does."""
    sigstore_trust_config: Path | None = None
    """JSON file of another Sigstore than the public one."""
    database_url: str | None = None
    """Job store; unset: SQLite inside the state folder."""
    artifacts_url: str | None = None
    """Artifact store, as fsspec names it; unset: inside the state folder."""
    ephemeral: bool = False
    """End with the last client's lease."""
    grace_seconds: float = Field(default=10.0, ge=0)
    """How long running calls may finish when the server is told to end."""
    engine_threads: int | None = Field(default=None, ge=1)
    """Compute threads of each engine; unset: torch decides."""
    memory_budget_bytes: int | None = Field(default=None, ge=1)
    """Memory that loading one model may take and, apart, that one call is predicted to take beyond its model.
    Each is held against all of it, whatever is loaded or runs beside it. Unset: what the machine has free for
    a model, and no bound for calls."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_content: bool = False
    """Log messages that may quote prompts. Off by default, and for debugging only."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources, strongest first."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("model_roots", "replacement_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(Path(part) for part in value.split(os.pathsep) if part)
        return value

    @field_validator("state", mode="before")
    @classmethod
    def _require_state(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise ValueError("is empty and names no folder; leave it out for your own")
        return value

    @field_validator("listen")
    @classmethod
    def _parse_listen(cls, value: str | None) -> str | None:
        if value is not None:
            split_listen(value)
        return value

    @field_validator("sigstore_trust_config")
    @classmethod
    def _require_trust_config(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"there is no file {value}")
        return value

    @model_validator(mode="after")
    def _check_listen(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together")
        if self.listen is None:
            return self
        host, _ = split_listen(self.listen)
        if not is_loopback(host) and self.tls_cert is None and not self.insecure_listen:
            raise ValueError(
                f"{host} is no loopback address: give tls_cert and tls_key, or spell out insecure_listen"
            )
        return self


def load_settings(flags: Mapping[str, Any], config: Path | None) -> Settings:
    """Read the settings.

    Args:
        flags: What the command line says; absent entries were not said.
        config: TOML file; None: none.

    Raises:
        InvalidRequestError: Naming the setting that is wrong.
    """
    if config is not None and not config.is_file():
        raise InvalidRequestError(f"there is no settings file {config}", field="config")

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    try:
        return FromFile(**flags)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "settings"
        why = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise InvalidRequestError(f"{field}: {why}", field=field) from error
    except (TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InvalidRequestError(
            f"cannot read the settings file {config}: {error}", field="config"
        ) from error


def split_listen(address: str) -> tuple[str, int]:
    """Split `HOST:PORT`, `[::1]:PORT`.

    Raises:
        ValueError: If it is anything else.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"listen must be HOST:PORT, got {address!r}")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
