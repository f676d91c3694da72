"""What counts as equal to a recorded array, and the report. See `docs/conformance.md`."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Verdict(NamedTuple):
    """A comparison, in words and in a word."""

    error: str
    tolerance: str
    ok: bool


Comparison = Callable[[np.ndarray, np.ndarray, Arrays], Verdict]
"""(ours, recorded, all arrays of the record) -> verdict. Both have the same shape."""


def exact(ours: np.ndarray, recorded: np.ndarray, record: Arrays) -> Verdict:
    """No value differs."""
    differing = np.count_nonzero(ours != recorded)
    return Verdict(f"{differing} differ", "exact", differing == 0)


def absolute(tolerance: float) -> Comparison:
    """max |ours - recorded|."""

    def compare(ours: np.ndarray, recorded: np.ndarray, record: Arrays) -> Verdict:
        error = np.abs(ours.astype(np.float64) - recorded).max(initial=0.0)
        return Verdict(f"{error:.2e} max", f"{tolerance:.0e}", bool(error <= tolerance))

    return compare


def close(factor: float, least: float) -> Comparison:
    """Each value within so many times its recorded size, or the least difference. Values that are
    not finite are the same ones."""

    def compare(ours: np.ndarray, recorded: np.ndarray, record: Arrays) -> Verdict:
        finite = np.isfinite(recorded)
        others = np.array_equal(ours[~finite], recorded[~finite], equal_nan=True)
        difference = np.abs(ours[finite].astype(np.float64) - recorded[finite])
        bound = np.maximum(least, factor * np.abs(recorded[finite]))
        ok = others and bool(np.all(difference <= bound))
        told = " or ".join(f"{x:.0e}{of}" for x, of in ((factor, " of it"), (least, "")) if x)
        return Verdict(f"{difference.max(initial=0.0):.2e} max", told, ok)

    return compare


def relative(tolerance: float, zero: str | float = 0.0) -> Comparison:
    """|ours - recorded| / |recorded|, Euclidean over the whole array.

    Args:
        zero: bound of |ours| where all of the recorded array is zero; or the array of the same
            record whose norm takes the place of |recorded| there.
    """

    def compare(ours: np.ndarray, recorded: np.ndarray, record: Arrays) -> Verdict:
        ours, recorded = ours.astype(np.float64), recorded.astype(np.float64)
        difference = float(np.linalg.norm(ours - recorded))
        if not recorded.any():
            bound = zero
            if isinstance(bound, str):
                bound = tolerance * float(np.linalg.norm(record.get(bound, 0.0)))
            why = f"{bound:.1e}, 0 recorded"
            return Verdict(f"{difference:.2e} L2", why, difference <= bound)
        error = difference / float(np.linalg.norm(recorded))
        return Verdict(f"{error:.2e} relL2", f"{tolerance:.0e}", error <= tolerance)

    return compare


def where_computed(compare: Comparison) -> Comparison:
    """Only entries that are not recorded as -1, which stands for "not computed"."""

    def masked(ours: np.ndarray, recorded: np.ndarray, record: Arrays) -> Verdict:
        computed = recorded != -1
        if not computed.any():
            return Verdict("none computed", "-", True)
        return compare(ours[computed], recorded[computed], record)

    return masked


def mostly(ours: np.ndarray, recorded: np.ndarray, record: Arrays) -> Verdict:
    """Masks: a pixel near the threshold may fall on the other side."""
    share = float(np.mean(ours.astype(bool) != recorded.astype(bool)))
    return Verdict(f"{share:.3%} differ", "0.5%", share <= 0.005)


def picture(ours: np.ndarray, recorded: np.ndarray, record: Arrays) -> Verdict:
    """uint8: truncation may flip a level here and there."""
    difference = np.abs(ours.astype(int) - recorded.astype(int))
    levels, share = difference.max(initial=0), np.mean(difference > 0)
    ok = bool(levels <= 2 and share <= 0.005)
    return Verdict(f"{levels} levels, {share:.3%}", "2 levels, 0.5%", ok)


# An energy below this is nothing to the method itself (method 4).
NO_ENERGY = 1e-8
# Times the published strength, 20000, this is 5e-4 of |eps|, about 40.
NO_GRADIENT = 1e-6

EDIT = "[CDE]*"
LONG = "50 steps of "
"""Before the method in the name of a case of so many steps."""


def of_methods(prefix: str, times: float) -> tuple[tuple[str, str, Comparison], ...]:
    """The lines for the methods that the paper compares with, as their recordings' descriptions
    have them: errors grow along a trajectory, so that cases of fifty steps may err five times as
    much as those of ten."""

    def within(tolerance: float, **options: Any) -> Comparison:
        return relative(times * tolerance, **options)

    def lines(method: str, *entries: tuple[str, Comparison]) -> list[tuple[str, str, Comparison]]:
        return [(f"{prefix}{method}: *", arrays, compare) for arrays, compare in entries]

    numbers = absolute(1e-6)
    exactly = ("ids_*", "*_t", "t", "*_s", "*_steps", "pair*_ids_*", "num_self_replace")
    tables = ("*mapper", "*alpha*", "equalizer", "*_w")
    return (
        *lines("*", *((arrays, exact) for arrays in exactly)),
        *lines("*", ("inner_steps_taken", exact), ("has_other", exact)),
        *lines("*", *((arrays, numbers) for arrays in tables)),
        *lines("*", ("emb_*", relative(5e-5)), ("*context", relative(5e-5))),
        *lines("*", ("pooled", relative(5e-5)), ("time_ids", exact)),
        *lines("*", ("inv_latents", within(5e-5)), ("inv_eps*", within(5e-5))),
        *lines("prompt_to_prompt", ("blend*_mask", mostly), ("blend_map*", within(1e-4))),
        *lines("prompt_to_prompt", ("attn_*", within(1e-4)), ("uncond_*", within(1e-4))),
        *lines("prompt_to_prompt", ("*", within(2e-4))),
        *lines("null_text_inversion", ("losses", where_computed(within(2e-4)))),
        *lines("null_text_inversion", ("null_embeddings", within(1e-4))),
        *lines("null_text_inversion", ("*", within(2e-4))),
        *lines("guide_and_rescale", ("grad_total", within(1e-3, zero="eps_trg"))),
        *lines("guide_and_rescale", ("*", within(3e-4, zero=NO_ENERGY))),
        *lines("masactrl", ("attn_*", within(5e-5)), ("*", within(2e-4))),
        *lines("iCD*", ("blend_mask", mostly), ("attn_*", within(1e-3))),
        *lines("iCD*", ("inv_*", within(1e-4)), ("clean_latent", relative(5e-5))),
        *lines("iCD*", ("*", within(5e-4))),
        *lines(
            "InfEdit", ("mask", mostly), ("*_attn_out", within(1e-3)), ("cross5*", within(1e-3))
        ),
        *lines("InfEdit", ("mask_map", within(1e-3)), ("*", within(2e-4))),
        *lines("ReNoise*", ("call_batch", exact), ("reg_after_call", exact)),
        *lines("ReNoise*", ("corr_index", exact), ("call_t*", exact), ("*", relative(1e-3))),
        *lines("SDXL*", ("unet_prompt_index", exact), ("*", relative(5e-5))),
        *lines("*", ("*", within(1e-4))),
    )


METRICS = "metrics "
"""Before the name of a case of recorded metrics."""


def of_metrics(prefix: str) -> tuple[tuple[str, str, Comparison], ...]:
    """The lines for recorded metrics, as their description has them."""

    def lines(case: str, *entries: tuple[str, Comparison]) -> list[tuple[str, str, Comparison]]:
        return [(f"{prefix}{case}", arrays, compare) for arrays, compare in entries]

    return (
        *lines("pictures", ("*", exact)),
        *lines("weights", ("*", relative(1e-6))),
        *lines("masks", ("*", exact)),
        *lines("coco", ("*.*", absolute(1e-5)), ("*", exact)),
        *lines("features", ("*ids", exact), ("*_mask", exact), ("*.reward", close(1e-4, 1e-4))),
        *lines("features", ("*pixel_values*", absolute(1e-5)), ("*.input_*", relative(1e-5))),
        *lines("features", ("*", relative(5e-5))),
        *lines("*", ("printed", absolute(1e-4)), ("*_lowered", exact)),
        *lines("*", ("*psnr*", close(0, 1e-4)), ("*mse*", close(1e-5, 0))),
        *lines("*", ("*ssim*", close(0, 5e-4)), ("*lpips*", close(1e-4, 1e-6))),
        *lines("*", ("*structure*", close(1e-4, 1e-7)), ("*clip_similarity*", close(0, 1e-3))),
        *lines("*", ("*imagereward*", close(1e-4, 1e-4)), ("*_ir", close(1e-4, 1e-4))),
        *lines("*", ("*", close(0, 1e-5))),
    )


TOLERANCES: tuple[tuple[str, str, Comparison], ...] = (
    # Cases, arrays, comparison. The first line that fits counts.
    *of_metrics(METRICS),
    ("*", "*_u8*", picture),
    ("masactrl*", "fixed_image", picture),
    ("*", "*timesteps", exact),
    *of_methods(LONG, 5),
    *of_methods("", 1),
    ("A_load*", "*_sum", exact),
    ("A_math*", "guidance_scale_embedding", absolute(4e-3)),
    ("A_math*", "linear_schedule*", exact),
    ("A_math*", "*", relative(2e-6)),
    ("A_t*", "input_ids", exact),
    (EDIT, "*_per_call", exact),
    (EDIT, "cfg_schedule", exact),
    (EDIT, "attn_shapes", exact),
    (EDIT, "has_other", exact),
    (EDIT, "target_mean_std", relative(2e-6)),
    (EDIT, "energy_*", relative(2e-4, zero=NO_ENERGY)),
    (EDIT, "attn_per_map", relative(2e-4, zero=NO_ENERGY)),
    (EDIT, "grad_total", relative(5e-4, zero="eps_trg")),
    (EDIT, "grad_norm", relative(5e-4, zero="eps_trg")),
    (EDIT, "grad_*", relative(5e-4, zero=NO_GRADIENT)),
    (EDIT, "ratio*", where_computed(relative(2e-4))),
    (EDIT, "scale", relative(2e-4)),
    # All tensors of a LoRA, and the worst one. The recordings' description bounds the change of a
    # single tensor by no number of its own: five times the bound of all.
    ("F_seq_*", "all*", relative(2e-3)),
    ("F_seq_*", "*", relative(1e-2)),
    ("F_grads_*", "all*", relative(3e-4)),
    ("F_grads_*", "*", relative(2e-3)),
    ("F_losses*", "*", relative(1e-4)),
    ("F_lpips", "seq_lpips.1_*", relative(1e-4)),
    ("F_lpips", "seq_lpips.3_*", relative(1e-4)),
    ("F_lpips", "check.*", relative(1e-6)),
    ("F_lpips", "*", relative(1e-3)),
    ("F_batch", "*endpoints", exact),
    ("E*", "inv_latent*", relative(5e-5)),
    ("E*", "context_*", relative(5e-5)),
    ("E*", "cfg_norm", relative(1e-4, zero="eps_inv")),
    ("E*", "*", relative(1e-4)),
    (EDIT, "cfg_norm", relative(5e-5, zero="eps_inv")),
    ("*", "*", relative(5e-5)),
)

INPUTS: tuple[tuple[str, str], ...] = (
    # Cases, and what their records hold for the computation to start from.
    (f"{METRICS}*", "names *.names prompt size file_id"),
    # Not of the original code.
    (f"{METRICS}*", "dinov2_transformers_5_interpolation"),
    ("A_load*", "*_in_u8"),
    ("A_math*", "w po_sample po_eps po_pairs pob_sample pob_eps pob_t pob_s"),
    ("A_math*", "linear_schedule_old_args ms_in_u8 ms_target ms_flat_in_u8"),
    ("A_unet*", "sample context timesteps w"),
    ("A_unet*", "batch_sample batch_context batch_timesteps batch_w"),
    ("A_vae*", "image_u8 decode_in"),
    ("B_inversion*", "image_u8 context noise"),
    ("B_generation*", "start context w_per_step"),
    (EDIT, "image_u8 noise"),
    ("F_batch", "images_u8 posterior_noise noise index endpoint_index w_for_align_l2_w"),
    ("*: *", "image_u8 source_u8 inv_noise vae_sample_noise init_noise step_noise"),
    ("*: *", "reg_rolls z0_noise noise noise_list noise_list_initial noise_list_2_3"),
    ("SDXL*: *", "unet_sample unet_t unet_time_ids"),
    ("F_lpips", "img0_u8 img1_u8 vgg_seed latents noise prompt_embeds index endpoint_index"),
)


def is_input(case: str, array: str) -> bool:
    """Whether INPUTS lists the array."""
    return any(
        fnmatch(case, cases) and any(fnmatch(array, name) for name in names.split())
        for cases, names in INPUTS
    )


class Report:
    """Prints a line per array and counts them."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def line(self, case: str, array: str, verdict: Verdict) -> None:
        """One result."""
        self.passed += verdict.ok
        self.failed += not verdict.ok
        error, tolerance, ok = verdict
        print(
            f"{case:<23} {array:<38} {error:<16} {tolerance:<20} {'ok' if ok else 'FAILED'}",
            flush=True,
        )

    def compare(self, case: str, ours: Mapping[str, Any], record: Arrays) -> None:
        """Every array of a record that is not an input."""
        for array, recorded in record.items():
            if not is_input(case, array):
                self.line(case, array, judge(case, array, ours, recorded, record))

    def compare_tensors(self, case: str, ours: Mapping[str, Any], record: Arrays) -> None:
        """A record of many tensors: all of them as one array, the worst one, and what else the
        record holds."""
        fitting = [
            name
            for name, x in record.items()
            if name in ours and np.shape(ours[name]) == x.shape and not name.startswith("all")
        ]
        for name in record:
            if name not in fitting:
                self.line(case, name, judge(case, name, ours, record[name], record))
        if not fitting:
            return

        def error(name: str) -> float:
            size = float(np.linalg.norm(record[name]))
            return float(np.linalg.norm(ours[name] - record[name])) / max(size, 1e-30)

        whole = f"all {len(fitting)} tensors"
        flat = [np.concatenate([x[name].ravel() for name in fitting]) for x in (ours, record)]
        self.line(case, whole, judge(case, whole, {whole: flat[0]}, flat[1], record))
        worst = max(fitting, key=error)
        short = worst.removeprefix("unet.base_model.model.").removesuffix(".weight")
        self.line(case, short[-38:], judge(case, worst, ours, record[worst], record))

    def crashed(self, case: str, error: Exception, record: Arrays) -> None:
        """Every array of a record that could not be computed."""
        verdict = crash(error)
        for array in [name for name in record if not is_input(case, name)] or ["(all)"]:
            self.line(case, array, verdict)

    def summary(self) -> str:
        """The last line."""
        return f"{self.passed} passed, {self.failed} failed"


def crash(error: Exception) -> Verdict:
    """A comparison that did not come about."""
    return Verdict("-", f"{type(error).__name__}: {error}".partition("\n")[0], False)


def judge(
    case: str, array: str, ours: Mapping[str, Any], recorded: np.ndarray, record: Arrays
) -> Verdict:
    """Compare one array by the first fitting line of TOLERANCES."""
    if array not in ours:
        return Verdict("-", "unknown array", False)
    mine = np.asarray(ours[array])
    if mine.shape != recorded.shape:
        return Verdict("-", f"shape {mine.shape} is not {recorded.shape}", False)
    compare = next(c for cases, a, c in TOLERANCES if fnmatch(case, cases) and fnmatch(array, a))
    try:
        return compare(mine, recorded, record)
    except Exception as error:  # a record may hold anything
        return crash(error)
