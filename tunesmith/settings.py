"""One deployment's settings: environment (TUNESMITH_*), then a toml file, then defaults. Passed explicitly, read nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from tunesmith.errors import InvalidRequest

_TOML = "tunesmith.toml"


class Settings(BaseSettings):
    """Settings of one deployment. Each field's description is its documentation."""

    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", extra="forbid", frozen=True)

    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("tunesmith")),
        description="Where everything is kept: database, files, checkpoints, models.",
    )
    cache_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("tunesmith")),
        description="Where prepared base models are kept; may be deleted, is made again when needed.",
    )
    database_url: str | None = Field(None, description="postgresql+psycopg://... to use PostgreSQL. Default: SQLite in the data directory.")
    api_key: str | None = Field(None, description="The key clients send. Default: one is made at first start and printed once.")
    host: str = Field("127.0.0.1", description="Address to listen on; loopback unless told otherwise.")
    port: int = Field(8321, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Host names, besides loopback's and `host`, that requests may be addressed to. Comma-separated in the environment."
    )
    allowed_models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Hub ids and local directories that may be used as bases besides the catalogue. Comma-separated in the environment."
    )
    model_aliases: dict[str, str] = Field(
        default_factory=dict,
        description='Foreign model names and the base each stands for here, as JSON: {"gpt-4o-mini": "smollm2-135m-instruct"}.',
    )
    organization: str = Field("personal", description="The organization part of fine-tuned model names.")
    max_file_bytes: int = Field(512 * 2**20, ge=1, description="Largest upload in bytes.")
    max_body_bytes: int = Field(2 * 2**20, ge=1024, description="Largest JSON body in bytes.")
    model_idle_seconds: float = Field(600, gt=0, description="Seconds without a request after which a model leaves memory.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Rank the sources: arguments, environment, toml file."""
        toml = Path(os.environ.get("TUNESMITH_CONFIG", _TOML))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=toml)

    @classmethod
    def load(cls, **given: object) -> Settings:
        """Read the settings; keyword arguments that are not None win.

        Raises: InvalidRequest naming the setting, its value and what is accepted.
        """
        try:
            return cls(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise InvalidRequest(
                f"Setting '{name}' (environment TUNESMITH_{name.upper()}) has value {first['input']!r}: {first['msg']}.", param=name
            ) from error

    @field_validator("allowed_hosts", "allowed_models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    def environment(self) -> dict[str, str]:
        """Return what a worker started by this process needs, as environment variables; never the API key."""
        values = {
            "data_dir": str(self.data_dir.absolute()), "cache_dir": str(self.cache_dir.absolute()), "database_url": self.database_url,
            "allowed_models": ",".join(self.allowed_models), "organization": self.organization,
        }  # fmt: skip
        return {f"TUNESMITH_{name.upper()}": value for name, value in values.items() if value}

    @property
    def database(self) -> str:
        """The SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite:///{self.data_dir / 'tunesmith.db'}"
