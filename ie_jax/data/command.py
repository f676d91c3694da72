"""The command: encode pictures and captions once, for training on latents."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ie_jax.cli import run
from ie_jax.config import parse
from ie_jax.data.config import DataConfig
from ie_jax.data.latents import Embed, Encode, cache_latents, fingerprint
from ie_jax.data.open import open_source
from ie_jax.data.pictures import Pictures
from ie_jax.devices import BATCH, WHOLE, make_mesh, over_devices, place, replicated
from ie_jax.errors import UserError
from ie_jax.models.execution import Execution, Precision
from ie_jax.models.networks import Networks, encode_captions, vae, vae_precision
from ie_jax.models.pixels import from_uint8
from ie_jax.models.tokenizer import tokenize_by
from ie_jax.models.unet import Conditions
from ie_jax.weights.folder import Weights
from ie_jax.weights.load import facts_of_pair_before_loading, load_pipeline

DESCRIPTION = """Encode pictures and captions once: write the autoencoder's posterior and the text
embeddings to a folder from which training reads them (source latents). A run that was interrupted
goes on where it was when it is started again."""


@dataclass(frozen=True)
class CacheRequest:
    """This run."""

    output: str | None = None
    """The folder to write."""
    offline: bool = False
    """Never use the network."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class CacheConfig:
    """What is encoded, and how."""

    model: str = "sd15"
    """random (untrained, tiny), icd-sd15, icd-sdxl, or a folder of upstream files: the one to be
    trained."""
    data: DataConfig = field(default_factory=DataConfig)
    dtype: Literal["float16", "float32"] = "float16"
    """Of posterior and embeddings on disk."""
    pixels: bool = False
    """Also keep the pictures: losses on pictures need them."""
    batch_size: int = 8
    """Pictures encoded at a time, a multiple of the devices."""
    shard: int = 256
    """Pictures per file."""
    precision: Precision = field(default_factory=Precision)
    """Number types of the text encoders."""
    vae_precision: Precision = field(default_factory=Precision)
    """Number types of the autoencoder; SDXL's is float32 whatever stands here."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.shard < 1:
            raise UserError("batch_size and shard must be positive")


def cache(argv: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: bad input.
    """
    request, config, _ = parse(argv, DESCRIPTION, CacheRequest, CacheConfig)
    if request.output is None:
        raise UserError("--output is missing: name the folder to write")
    if not config.data.path:
        raise UserError("--data.path is missing: name the folder of the data")
    if config.data.source == "latents":
        raise UserError("--data.source latents: they are encoded already")
    if config.batch_size % jax.device_count():
        raise UserError(
            f"--batch-size {config.batch_size} must be a multiple of the {jax.device_count()} "
            "devices"
        )
    source = open_source(config.data, config.data.split)  # before gigabytes are fetched
    facts_of_pair_before_loading(config.model)
    pipeline = load_pipeline(config.model, offline=request.offline, progress=not request.quiet)
    architecture = pipeline.architecture
    size = config.data.size or architecture.image_size
    if size % architecture.latent_factor:
        raise UserError(f"--data.size {size} must divide by {architecture.latent_factor}")
    networks = Networks(
        architecture,
        config.precision,
        vae_precision(architecture, config.vae_precision),
        Execution().resolve(config.precision),
    )
    encode, embed = encoders(networks, pipeline.weights)
    length = architecture.text.max_position_embeddings
    tokenize = tokenize_by(pipeline.tokenizers, length)
    index = cache_latents(
        Pictures(source, tokenize, size, config.data.captions),
        Path(request.output).expanduser(),
        encode,
        embed,
        model=fingerprint(pipeline.weights.vae, pipeline.weights.texts),
        dtype=config.dtype,
        pixels=config.pixels,
        batch_size=config.batch_size,
        shard=config.shard,
        workers=config.data.workers,
        max_broken=config.data.max_broken,
        progress=not request.quiet,
    )
    print(f"wrote latents of {sum(index.counts)} images to {request.output}")


def encoders(networks: Networks, weights: Weights) -> tuple[Encode, Embed]:
    """Autoencoder and text encoders, each batch shared among all devices."""
    mesh = make_mesh()

    def moments(params: Any, pixels: jax.Array) -> Any:
        return vae(networks).apply({"params": params}, from_uint8(pixels), method="moments")

    def embed(params: Any, ids: jax.Array) -> dict[str, jax.Array]:
        # No kept embedding depends on the sizes, which are told when the latents are used.
        told = encode_captions(networks, params, ids, jnp.zeros((len(ids), 6)))
        if isinstance(told, Conditions):
            return {"context": told.text, "pooled": told.pooled}
        return {"context": told}

    def placed(function: Any, params: Any) -> Any:
        jitted = jax.jit(over_devices(function, mesh, (WHOLE, BATCH), BATCH))
        return partial(jitted, place(params, replicated(mesh)))

    return placed(moments, weights.vae), placed(embed, weights.texts)


def main() -> None:
    """The console command."""
    run(cache)
