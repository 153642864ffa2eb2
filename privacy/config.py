"""The YAML file of privacy-audit.py: four sections with Privacy Meter's field names, checked before anything runs.

Every field has a default but run.log_dir, data.dataset and train.model_name; configs/README.md lists them all. A key
that is not known is an error that names the nearest one: a setting that is silently ignored would be worse. Privacy
Meter's own files are translated (see translation.py). The file is read by YAML's safe loader, which makes nothing but
numbers, words, lists and mappings.
Public: Config, Run, Audit, Ranges, Train, Data, Section, Share, load, read, dump, QUERIES, SKETCH.
"""

import difflib
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from kit.errors import UserError
from kit.files import atomic_path
from privacy.translation import translated

# What a record may look like when a model is asked about it; all but the first are for images.
QUERIES = ("identity", "flip", "up", "down", "left", "right")
SKETCH = "run: {log_dir: FOLDER}, data: {dataset: NAME}, train: {model_name: NAME}"


def _number(value):
    # YAML 1.1 calls 1e-3 a word, because it has no dot; people mean the number.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number)]
Share = Annotated[Number, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


class Run(Section):
    """One run of the pipeline."""

    log_dir: str = Field(min_length=1)
    random_seed: int = Field(1, ge=0)
    time_log: bool = True
    num_experiments: int = Field(1, ge=1)  # models that are audited as targets


class Ranges(Section):
    """Which changed copies of a record somebody holds, for audit.ramia."""

    function: Literal["geometric", "l2", "missing_values"]
    points: int = Field(10, ge=2, le=1000)
    radius: Annotated[Number, Field(gt=0)] | None = None
    transformations: list[Literal["horizontal_flip", "vertical_flip", "rotate"]] = Field([], max_length=1000)
    columns: list[Annotated[list[Number], Field(min_length=2, max_length=2)]] = []
    categorical: bool = False

    @model_validator(mode="after")
    def _has_what_it_needs(self):
        needed = {"geometric": "transformations", "l2": "radius", "missing_values": "columns"}[self.function]
        if not getattr(self, needed):
            raise ValueError(f"{self.function} needs {needed}")
        if self.function == "geometric" and len(self.transformations) < 2:
            raise ValueError("transformations must be two or more")
        if any(low > high for low, high in self.columns):
            raise ValueError("columns must be pairs of numbers, the lower one first")
        return self


class Audit(Section):
    """What is asked of the models, and which attacks make something of the answers."""

    privacy_game: Literal["privacy_loss_model"] = "privacy_loss_model"
    algorithm: str | list[str] = "all"
    num_ref_models: int | None = Field(None, ge=1)  # that were not trained on a record; as many others were
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    report_log: str = Field("report", pattern=r"^[\w.-]*\w$")  # folder of the report in run.log_dir
    batch_size: int = Field(1000, ge=1)
    data_size: int | None = Field(None, ge=2)
    population_size: int | None = Field(None, ge=1)
    queries: list[Literal[QUERIES]] | None = Field(None, min_length=1)
    gamma: Number = Field(2.0, gt=0)
    offline_a: Share | None = None
    asked_fpr: Share | None = 1e-3  # at which offline_a is chosen; None: by AUC
    fprs: list[Share] = Field([1e-2, 1e-3, 1e-4, 0.0], min_length=1)
    groups: list[str] | None = None
    ramia: dict | None = None
    ranges: Ranges | None = None
    duci: dict | None = None
    epsilon: dict | None = None

    @field_validator("queries")
    @classmethod
    def _starts_with_identity(cls, value):
        if value is not None and (value[0] != "identity" or len(set(value)) < len(value)):
            raise ValueError("the first query must be identity, and none may come twice")
        return value


class Train(Section):
    """How every model is trained."""

    model_name: str = Field(min_length=1)
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: int = Field(128, ge=2)
    optimizer: Literal["SGD", "AdamW"] = "SGD"
    learning_rate: Number = Field(0.1, gt=0)
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-4
    epochs: int = Field(100, ge=1)
    schedule: Literal["step", "cosine", "one_cycle", "constant"] = "step"
    crop_padding: int = Field(4, ge=0)
    hidden: list[Annotated[int, Field(ge=1)]] = [256]
    pretrained: str | None = None
    peft_type: Literal["lora"] | None = None
    lora_rank: int = Field(8, ge=1)
    lora_modules: list[str] = Field(["c_attn"], min_length=1)
    countermeasure: str | None = None
    checkpoints: int = Field(0, ge=0, le=100)  # kept of each training, evenly spread, for loss trajectories


class Data(Section):
    """The records."""

    dataset: str = Field(min_length=1)
    data_dir: str | None = None
    image_size: int | None = Field(None, ge=8, le=4096)
    size: int | None = Field(None, ge=2)  # records that models are trained on, each on half of them
    label: str | int | None = None
    groups: list[str] = []
    tokenize: bool = False
    tokenizer: str = "bytes"
    max_length: int = Field(128, ge=2)
    features: int = Field(1024, ge=2)
    canaries: int = Field(0, ge=0)
    marked_users: int = Field(0, ge=0)
    marked_samples_per_user: int = Field(25, ge=1)
    img_blending_ratio: Share = 0.7
    noise_norm: Annotated[Number, Field(ge=0, le=255)] = 8.0


class Config(Section):
    """The whole file."""

    run: Run
    audit: Audit = Audit()
    train: Train | None = None
    data: Data

    @property
    def models(self):
        """How many models are trained, in complementary pairs: as many as the targets and their references need."""
        return 2 * max(-(-self.run.num_experiments // 2), (self.audit.num_ref_models or 1) + 1)


def load(path):
    """Read and check a YAML file: a Config whose relative paths have been made absolute (seen from the working folder).

    Raises UserError that names the file, the field and what is wrong with it.
    """
    content = read(Path(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} has no sections", advice=f"it needs at least {SKETCH}")
    try:
        content, notes = translated(content)
    except UserError as problem:
        raise UserError(f"{path}: {problem.problem}", problem.advice) from None
    try:
        config = _absolute(Config.model_validate(content))
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        return config
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error.errors()[0])}") from None


def dump(path, config):
    """Write a Config as YAML that `load` reads from any folder."""
    import yaml

    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def read(path, sketch="give a YAML file with --cf, for example configs/digits.yaml"):
    """What a YAML file says, by the safe loader. Raises UserError; sketch: what to do where there is no such file."""
    try:
        import yaml
    except ImportError:
        raise UserError("privacy-audit.py needs PyYAML: pip install pyyaml") from None

    class OnceLoader(yaml.SafeLoader):
        """The safe loader, but a key that is given twice is an error; YAML would take the last one without a word."""

        def construct_mapping(self, node, deep=False):
            names = [key.value for key, _ in node.value]
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise yaml.constructor.ConstructorError(None, None, f"{min(twice)!r} is given twice", node.start_mark)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(path.read_text(encoding="utf-8"), OnceLoader)  # a subclass of the safe loader
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path} does not exist", advice=sketch) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8", advice="give a YAML file") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        where = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"{path} can't be read{where}: {problem}", advice="only plain values are read") from None


def _explain(error):
    """One line about pydantic's first error, with the nearest known key where one is unknown."""
    place, kind = [str(part) for part in error["loc"]], error["type"]
    if kind == "extra_forbidden":
        return _unknown(place)
    if kind == "missing":
        return f"{'.'.join(place)} is missing; at least {SKETCH} are needed"
    given = repr(error["input"])
    message = error["msg"].removeprefix("Value error, ")
    return f"{'.'.join(place)} is {given[:60]}: {message[:1].lower()}{message[1:]}"


def _unknown(place):
    sections = {"run": Run, "audit": Audit, "train": Train, "data": Data}
    key, parents = place[-1], place[:-1]
    here = list(sections[parents[0]].model_fields) if parents else list(sections)
    # The same key in another section is nearer than a similar one in this section.
    elsewhere = [name for name, section in sections.items() if parents and key in section.model_fields]
    if elsewhere:
        return f"{'.'.join(place)} is unknown; {key} belongs in the section {elsewhere[0]}"
    nearest = difflib.get_close_matches(key, here, n=1, cutoff=0)[0]
    within = f"section {parents[0]}" if parents else "file"
    return f"{'.'.join(place)} is unknown; did you mean {nearest}? This {within} may have {', '.join(here)}"


def _absolute(config):
    """Relative folders and files seen from here, so that a command started elsewhere finds them."""

    def full(text):
        return str(Path(text).expanduser().resolve())

    run = config.run.model_copy(update={"log_dir": full(config.run.log_dir)})
    data = config.data
    if data.data_dir is not None:
        data = data.model_copy(update={"data_dir": full(data.data_dir)})
    train = config.train
    if train is not None and ".py:" in train.model_name:
        file, _, function = train.model_name.rpartition(":")
        train = train.model_copy(update={"model_name": f"{full(file)}:{function}"})
    return config.model_copy(update={"run": run, "data": data, "train": train})
