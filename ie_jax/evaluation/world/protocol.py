"""The protocol of the embedded world: reconstruction, edits with exact ground truth, trade-offs.

`evaluate` gives what is written to results.json:

    protocol, model, seed  as asked for; `scenes` the number of scenes
    settings               `WorldConfig`
    files                  file name of each method's forward model
    seconds                of each stage
    versions, device       added by the command
    classifier             how well the judge knows real pictures: `count`, and `accuracy` by
                           attribute and for `all` of a picture's
    samples                a list: the same of pictures made from noise, by `method` (teacher, by
                           DDIM; backward, the consistency model), with `guidance` and `steps`
    reconstruction         a list, one entry per row: `method`, `start_timestep`, `start_noise`
                           (null for autoencoder and DDIM); `mse` on [-1, 1], `psnr` and
                           `perceptual` to the picture, `psnr_to_autoencoder`, `noise_std`
    edits                  a list: `method`, `guided`, `start_timestep`, `start_noise` (null for the
                           bound, the truth through the autoencoder), `kind` (one of `EDITS`, or
                           `all`), and scores
    tradeoff               `scenes`, and `points`, a list: `method`, `sweep` (strength, bound or
                           schedule), `value`, `guided`, and scores

Scores are `success` (all attributes of the target right by the classifier), `changed` (the one that
the edit is about), `psnr_to_truth` and `perceptual_to_truth` (to the exact edit),
`psnr_outside_mask` (to the source, where source and truth cannot differ), and `finite` (whether the
networks gave numbers). Every measured number is an `Interval`: `mean`, `low` and `high` of its 95 %
interval over scenes (of shares by Wilson), `count`.
"""

from dataclasses import asdict

from ie_jax.errors import UserError
from ie_jax.evaluation.report import Pictures
from ie_jax.evaluation.world.config import WorldConfig
from ie_jax.evaluation.world.edits import measure_edits
from ie_jax.evaluation.world.model import load_model
from ie_jax.evaluation.world.reconstruction import measure_reconstruction
from ie_jax.evaluation.world.samples import measure_samples
from ie_jax.evaluation.world.scores import Results, accuracy
from ie_jax.evaluation.world.tasks import check_seed, draw_source
from ie_jax.evaluation.world.tradeoff import measure_trade_off
from ie_jax.progress import Stages


def evaluate(
    name: str, scenes: int, seed: int, batch_size: int, config: WorldConfig, stages: Stages
) -> tuple[Results, dict[str, Pictures]]:
    """The whole protocol.

    Args:
        name: the model, see `load_model`.
        scenes: how many, at least 1.
        seed: of the scenes, outside of `TRAINING_SEEDS`.

    Returns:
        The results (see this module), and pictures of `samples`, `reconstruction` and `edits`,
        columns by name.

    Raises:
        UserError: the seed is one of training, a number is not positive, or the model cannot be
            used.
    """
    check_seed(seed)
    if min(scenes, batch_size) < 1:
        raise UserError("scenes and batch_size must be positive")
    with stages(f"load {name}"):
        model = load_model(name, config.edit_config(name))
    source = draw_source(model, seed, scenes, config.places)
    with stages("classify real pictures"):
        real = accuracy(model, batch_size, source.pixels, source.scenes)
    reconstruction, reconstructed = measure_reconstruction(
        model, config, batch_size, source, stages
    )
    with stages(f"samples of teacher and backward model ({scenes})"):
        samples, sampled = measure_samples(model, config, batch_size, source)
    edits, edited = measure_edits(model, config, batch_size, source, seed, stages)
    tradeoff = measure_trade_off(model, config, batch_size, source, seed, stages)
    results = {
        "protocol": "world",
        "model": name,
        "seed": seed,
        "scenes": scenes,
        "settings": asdict(config),
        "files": dict(model.files),
        "seconds": {stage: round(value, 1) for stage, value in stages.seconds.items()},
        "classifier": {"count": scenes, "accuracy": real},
        "samples": samples,
        "reconstruction": reconstruction,
        "edits": edits,
        "tradeoff": tradeoff,
    }
    return results, {"samples": sampled, "reconstruction": reconstructed, "edits": edited}
