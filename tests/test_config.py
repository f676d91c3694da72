"""Configs: strict, with messages that say what to change."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ie_jax.config import build, options_of, parse, read_yaml
from ie_jax.diffusion.schedule import GUIDANCE
from ie_jax.editing.command import EditRequest
from ie_jax.editing.config import EditConfig, GuiderConfig, RescalingConfig
from ie_jax.errors import UserError
from ie_jax.evaluation.demo import DemoConfig
from ie_jax.training.stages import TrainConfig
from ie_jax.weights.published import PUBLISHED

CONFIGS = Path(__file__).parents[1] / "configs"


def refusal(values: Any) -> str:
    """The one line with which settings are refused."""
    with pytest.raises(UserError) as caught:
        build(EditConfig, values, "c.yaml")
    message = str(caught.value)
    assert message.startswith("c.yaml: ") and "\n" not in message
    return message.removeprefix("c.yaml: ")


def from_text(text: str, folder: Path) -> EditConfig:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return build(EditConfig, read_yaml(path), str(path))


# --- sections whose default is their own ---


def test_a_section_of_which_one_thing_is_set_keeps_the_others() -> None:
    usual = DemoConfig().edit
    found = build(DemoConfig, {"edit": {"seed": 3, "execution": {"unroll": 2}}}, "demo").edit
    assert found == replace(usual, seed=3, execution=replace(usual.execution, unroll=2))
    assert usual.guiders and not usual.execution.optimise
    assert build(DemoConfig, {"edit": {"guiders": []}}, "demo").edit.guiders == ()


# --- unknown names ---


@pytest.mark.parametrize(
    ("values", "name", "nearest"),
    [
        ({"cfg_shedule": [0]}, "cfg_shedule", "cfg_schedule"),
        ({"precision": {"compue": "float32"}}, "precision.compue", "compute"),
        ({"vae_precision": {"parm": "float32"}}, "vae_precision.parm", "param"),
        ({"execution": {"rematt": "call"}}, "execution.rematt", "remat"),
        ({"noise_rescaling_setup": {"ini_setup": 1}}, "noise_rescaling_setup.ini_setup", None),
        ({"guiders": [{"nam": "x"}]}, "guiders.0.nam", "name"),
        (
            {"guiders": [{"name": "features_map_l2"}, {"kwargs": {"blok": "up"}}]},
            "guiders.1.kwargs.blok",
            "block",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(
    values: Any, name: str, nearest: str | None
) -> None:
    nearest = nearest or "init_setup"
    assert refusal(values) == f"unknown setting {name!r}: did you mean {nearest}?"


def test_a_name_like_no_other_is_refused_with_all_that_there_are() -> None:
    assert refusal({"zzz": 1}).startswith("unknown setting 'zzz': known are model, forward,")
    assert refusal({"guiders": [{"zzz": 1}]}).endswith("known are name, g_scale, kwargs")


# --- wrong values ---

FEATURES = {"name": "features_map_l2", "g_scale": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 1.5}, "seed = 1.5: Input should be a valid integer"),
        ({"seed": True}, "seed = true: Input should be a valid integer"),
        ({"seed": -1}, "seed -1 must be from 0 to 4294967295"),
        ({"seed": 2**32}, "seed 4294967296 must be from 0 to 4294967295"),
        ({"size": "512"}, 'size = "512": Input should be a valid integer'),
        ({"size": 0}, "size 0 must be positive"),
        ({"start_noise": 1}, "start_noise = 1: Input should be a valid boolean"),
        ({"model": None}, "model = null: Input should be a valid string"),
        ({"lora": "both"}, "lora = \"both\": Input should be 'merge' or 'low_rank'"),
        (
            {"execution": {"unroll": 0}},
            "execution: query_chunk must not be negative, unroll 1 or more",
        ),
        (
            {"execution": {"query_chunk": -1}},
            "execution: query_chunk must not be negative, unroll 1 or more",
        ),
        ({"execution": 3}, "execution = 3: Input should be an object"),
        (
            {"execution": {"unroll": "all"}},
            'execution.unroll = "all": Input should be a valid integer',
        ),
        (
            {"precision": {"compute": "fp8"}},
            "precision.compute = \"fp8\": Input should be 'float32', 'bfloat16' or 'float16'",
        ),
        ({"cfg_schedule": 7}, "cfg_schedule = 7: Input should be a valid array"),
        ({"cfg_schedule": [0, "7"]}, 'cfg_schedule.1 = "7": Input should be a valid number'),
        ({"cfg_schedule": []}, "cfg_schedule is empty: give one guidance scale per step"),
        (
            {"boundaries": [339, 699, 999], "cfg_schedule": [0, 7, 11, 19]},
            "cfg_schedule has 4 values but there are 3 boundaries: give one value per step",
        ),
        ({"guiders": FEATURES}, f"guiders = {json.dumps(FEATURES)}: Input should be a valid array"),
        (
            {"guiders": [FEATURES | {"g_scale": [1, 2, 3]}], "cfg_schedule": [0, 7, 11, 19]},
            "g_scale of guider features_map_l2 has 3 values but there are 4 steps: "
            "give one value per step",
        ),
        (
            {"guiders": [FEATURES | {"g_scale": [1, "x"]}]},
            'guiders.0.g_scale.1 = "x": Input should be a valid number',
        ),
        (
            {"guiders": [FEATURES | {"g_scale": "x"}]},
            'guiders.0.g_scale = "x": Input should be a valid number or a valid array',
        ),
        (
            {"guiders": [{"name": "features_map_l2"}]},
            'guiders.0 = {"name": "features_map_l2"}: g_scale is missing',
        ),
        (
            {"guiders": [FEATURES | {"name": "feature_map"}]},
            "guiders.0.name = \"feature_map\": Input should be 'self_attn_map_l2' or "
            "'features_map_l2'",
        ),
        (
            {"guiders": [{"name": "self_attn_map_l2", "g_scale": 1, "kwargs": {"block": "mid"}}]},
            "guiders: self_attn_map_l2 takes no kwargs",
        ),
        (
            {"guiders": [FEATURES, FEATURES]},
            "guiders: one is listed twice: give it the sum of both g_scale",
        ),
        (
            {"noise_rescaling_setup": {"init_setup": [0]}},
            "noise_rescaling_setup.init_setup = [0]: too few values",
        ),
        (
            {"noise_rescaling_setup": {"init_setup": [1, 0]}},
            "noise_rescaling_setup: bounds [1.0, 0.0] must be 0 <= lower <= upper",
        ),
        (
            {"noise_rescaling_setup": {"init_setup": None}},
            "noise_rescaling_setup: range_other_on_cfg_norm needs init_setup, e.g. [0, 1]",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(values: Any, message: str) -> None:
    assert refusal(values) == message


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_only_the_upper_bound_may_be_infinite(number: float) -> None:
    assert refusal({"cfg_schedule": [0, 7, 11, number]}).endswith("must be finite numbers")
    assert refusal({"guiders": [FEATURES | {"g_scale": number}]}).endswith("must be finite numbers")
    scales = [0, number, 0, 0]
    assert refusal({"guiders": [FEATURES | {"g_scale": scales}]}).endswith("must be finite numbers")
    assert "0 <= lower <= upper" in refusal({"noise_rescaling_setup": {"init_setup": [number, 1]}})
    bounds = {"noise_rescaling_setup": {"init_setup": [0, number]}}
    if number == float("inf"):
        built = build(EditConfig, bounds, "c.yaml")
        assert built.noise_rescaling_setup.bounds == (0, number)
    else:
        assert "0 <= lower <= upper" in refusal(bounds)


@pytest.mark.parametrize("value", [yaml.safe_load("2024-01-31"), b"bytes", {1}, object()])
def test_what_yaml_has_beside_text_numbers_and_lists_is_refused(value: object) -> None:
    assert refusal({"seed": value}).startswith("a value is neither text, number nor list")


def test_the_identity_rescaler_needs_no_bounds() -> None:
    assert RescalingConfig("identity_rescaler").bounds == (0, float("inf"))
    assert RescalingConfig("identity_rescaler", None).bounds == (0, float("inf"))
    assert RescalingConfig(init_setup=(0.33, 3.0)).bounds == (0.33, 3.0)


def test_guiders_of_one_name_are_told_apart_by_their_block() -> None:
    blocks = [FEATURES | {"kwargs": {"block": block}} for block in ("up", "down", "mid")]
    config = build(EditConfig, {"guiders": blocks}, "c.yaml")
    labels = [guider.label for guider in config.guiders]
    assert labels == ["features_map_l2", "features_map_l2_down", "features_map_l2_mid"]


# --- YAML ---


@pytest.mark.parametrize(
    "text",
    [
        "seed: [",
        "seed: 1\nseed: 2",
        "execution: {unroll: 1, unroll: 2}",
        "seed: 2024-13-45",
        "seed: " + "9" * 5000,
        "[" * 5000,
        "? [a]\n: 1",
        "seed: !!python/object/apply:os.getcwd []",
        "seed: \0",
        "seed: &a [*a]",
        "guiders: &a [*a]",
        "- 1",
        "1: 2",
        "text",
        "model: \ud800",
    ],
)
def test_yaml_that_is_no_config_is_refused_by_its_file_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError) as caught:
        build(EditConfig, read_yaml(path), str(path))
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the config .*none.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a directory; name a file"):
        read_yaml(tmp_path)


def test_numbers_in_scientific_notation(tmp_path: Path) -> None:
    config = from_text("cfg_schedule: [0, 7e0, 1.1E1, +.19e2]", tmp_path)
    assert config.cfg_schedule == (0, 7, 11, 19)


@pytest.mark.parametrize("text", ["", "# nothing", "{}"])
def test_an_empty_config_is_the_defaults(text: str, tmp_path: Path) -> None:
    assert from_text(text, tmp_path) == EditConfig()


PUBLISHED_YAML = """
pipeline_type: ours
start_latent: consistency
verbose: false
cfg_schedule: [0, 7, 11, 19]
guiders:
  - name: features_map_l2
    g_scale: [0.5, 0.5, 0.5, 0.5]
    kwargs: {}
  - name: self_attn_map_l2
    g_scale: [0, 20000, 20000, 20000]
noise_rescaling_setup:
  type: range_other_on_cfg_norm
  init_setup: [0.0, 1.0]
edit_types: [animal-2-animal, face-in-the-wild, person-in-the-wild]
"""


def test_the_published_layout_is_read_as_it_is(tmp_path: Path) -> None:
    config = from_text(PUBLISHED_YAML, tmp_path)
    assert config == EditConfig(
        cfg_schedule=GUIDANCE,
        guiders=(
            GuiderConfig("features_map_l2", (0.5, 0.5, 0.5, 0.5)),
            GuiderConfig("self_attn_map_l2", (0, 20000, 20000, 20000)),
        ),
    )
    assert config.scales(4) == ((0.5,) * 4, (0, 20000, 20000, 20000))


def test_the_published_layout_above_is_the_recorded_one(goldens: Path) -> None:
    recorded = json.loads((goldens / "E0_guided_official.json").read_text())["config"]
    assert yaml.safe_load(PUBLISHED_YAML) == recorded


@pytest.mark.parametrize("key", ["pipeline_type", "start_latent"])
def test_published_keys_with_values_of_other_methods_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{key} must be '.*', nothing else is implemented"):
        from_text(f"{key}: ddim", tmp_path)


# --- the files in configs/ ---


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_valid_and_names_only_what_differs(path: Path) -> None:
    values = read_yaml(path)
    text = path.read_text()
    training = f"python train.py --config configs/{path.name}" in text
    assert training or f"python edit.py --config configs/{path.name}" in text
    schema: Any = TrainConfig if training else EditConfig
    config = build(schema, values, str(path))
    defaults = json.loads(json.dumps(asdict(schema())))
    # The model is named even where it is the default.
    assert not [key for key, value in values.items() if key != "model" and value == defaults[key]]
    if config.model in PUBLISHED and not training:
        assert len(config.cfg_schedule or GUIDANCE) == len(PUBLISHED[config.model].facts.boundaries)


def test_the_guided_configs_are_the_published_setting(tmp_path: Path) -> None:
    published = from_text(PUBLISHED_YAML, tmp_path)
    for name in ("sd15_guided", "sd15_guided_bf16", "random"):
        config = build(EditConfig, read_yaml(CONFIGS / f"{name}.yaml"), name)
        scales, expected = (
            {guider.label: guider.scales(4) for guider in x.guiders} for x in (config, published)
        )
        assert scales == expected
        assert (config.cfg_schedule or GUIDANCE) == published.cfg_schedule
        assert config.noise_rescaling_setup == published.noise_rescaling_setup


# --- file and command line ---


def test_the_command_line_beats_the_file_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 1\nsize: 64\nprecision: {compute: bfloat16, param: bfloat16}\n")
    argv = ["--config", str(path), "--seed", "2", "--precision.param", "float32"]
    _, config, given = parse(argv, "", EditRequest, EditConfig)
    assert (config.seed, config.size) == (2, 64)
    assert (config.precision.compute, config.precision.param) == ("bfloat16", "float32")
    assert given == ["seed", "precision.param"]


def test_mistakes_are_reported_where_they_were_made(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: many\n")
    with pytest.raises(UserError, match=rf"^{path}: seed"):
        parse(["--config", str(path), "--size", "x"], "", EditRequest, EditConfig)
    path.write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"^command line: size"):
        parse(["--config", str(path), "--size", "x"], "", EditRequest, EditConfig)


# --- whatever the values ---

names = st.one_of(
    st.sampled_from([*EditConfig.__dataclass_fields__, "name", "g_scale", "type", "compute"]),
    st.text(max_size=5),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=3),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4)
)


@settings(max_examples=300)
@given(values=st.dictionaries(names, values, max_size=4))
def test_no_values_raise_anything_but_a_user_error(values: dict[str, Any]) -> None:
    # Through text, as from a file: what comes out is what YAML can hold.
    read = yaml.safe_load(yaml.safe_dump(values))
    try:
        config = build(EditConfig, read, "c.yaml")
    except UserError as error:
        assert str(error).startswith("c.yaml: ")
    else:
        assert isinstance(config, EditConfig)


@settings(max_examples=300)
@given(text=st.text("aeimnstu_:-[]{}&*!?|>#'\"%@`,. \n0123456789", max_size=40))
def test_no_text_raises_anything_but_a_user_error(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        from_text(text, tmp_path_factory.getbasetemp())
    except UserError as error:
        assert "\n" not in str(error)


numbers = st.floats(-1e6, 1e6)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Valid settings as plain values."""
    steps = draw(st.integers(1, 5))
    per_step = st.lists(numbers, min_size=steps, max_size=steps)
    boundaries = st.lists(st.integers(1, 999), min_size=steps, max_size=steps, unique=True)
    dtypes = st.sampled_from(["float32", "bfloat16", "float16"])
    precision = st.fixed_dictionaries({}, optional={"param": dtypes, "compute": dtypes})
    blocks = draw(st.lists(st.sampled_from(["up", "down", "mid"]), unique=True))
    guiders = [
        {
            "name": "features_map_l2",
            "g_scale": draw(numbers | per_step),
            "kwargs": {"block": block},
        }
        for block in blocks
    ]
    optional = {
        "model": st.text(max_size=10),
        "boundaries": st.none() | boundaries.map(sorted),
        "start_timestep": st.none() | st.integers(0, 500),
        "start_noise": st.booleans(),
        "guiders": st.just(guiders),
        "noise_rescaling_setup": st.fixed_dictionaries(
            {"type": st.just("identity_rescaler")},
            optional={"init_setup": st.lists(st.floats(0, 9), min_size=2, max_size=2).map(sorted)},
        ),
        "lora": st.sampled_from(["merge", "low_rank"]),
        "size": st.none() | st.integers(1, 2**31),
        "fit": st.sampled_from(["crop", "aspect"]),
        "seed": st.integers(0, 2**32 - 1),
        "precision": precision,
        "vae_precision": precision,
        "execution": st.fixed_dictionaries(
            {}, optional={"unroll": st.integers(1, 2**31), "query_chunk": st.integers(0, 2**31)}
        ),
    }
    return draw(st.fixed_dictionaries({"cfg_schedule": per_step}, optional=optional))


@settings(max_examples=200)
@given(values=configs())
def test_valid_configs_survive_yaml_and_the_record_of_a_run(values: dict[str, Any]) -> None:
    config = build(EditConfig, values, "c.yaml")
    assert build(EditConfig, yaml.safe_load(yaml.safe_dump(values)), "c.yaml") == config
    assert build(EditConfig, json.loads(json.dumps(asdict(config))), "edit.json") == config


def unsigned(value: Any) -> Any:
    """Without minus signs: argparse takes most words that begin with one for options."""
    match value:
        case dict():
            return {name: unsigned(x) for name, x in value.items()}
        case list():
            return [unsigned(x) for x in value]
        case str():
            return value.lstrip("-")
        case float():
            return abs(value)
        case _:
            return value


@settings(max_examples=20)
@given(values=configs().map(unsigned))
def test_valid_configs_survive_the_command_line(values: dict[str, Any]) -> None:
    config = build(EditConfig, values, "c.yaml")
    words = options_of(config)
    assume(not any(x.startswith("-") and not x.startswith("--") for x in words))
    assert parse(words, "", EditRequest, EditConfig)[1] == config


def test_only_what_differs_from_the_defaults_is_an_option() -> None:
    assert options_of(EditConfig()) == []
    config = EditConfig(start_noise=False, seed=3, strength=(0.5, 1.0))
    assert options_of(config) == ["--no-start-noise", "--strength", "0.5", "1.0", "--seed", "3"]
