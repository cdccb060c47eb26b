"""A checkpoint as a model of mlflow: with the run that trained it, in the registry if asked for, loaded by mlflow.

    model = mlflow.pyfunc.load_model("models:/my-voice/1")
    [made] = model.predict({"seconds": 2.0, "temperature": 0.95, "seed": 7})
    soundfile.write("seven.wav", made["waveform"], made["sample_rate_hz"])

Its files are the model as `audio_ct.publication` hands it on, and this package's code: nothing in it is a pickle, and
who loads it needs only the packages that it names.
"""

import json
import re
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_ct import api, checkpoint, pretrained
from audio_ct.errors import AudioCTError, InputError
from audio_ct.pretrained import Pretrained
from audio_ct.provenance import NOTE_TAG
from audio_ct.publication import KINDS, export
from audio_ct.record import run_of
from audio_ct.training.mlflow_store import as_line, without_password
from audio_ct.training.replay import mlflow_run

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

    from audio_ct.training.mlflow_run import MlflowRun

# By the digest of its weights a model is found that was logged before.
WEIGHTS_TAG = "audio_ct.weights"
# Where mlflow's pages look for the registered versions of a model.
VERSIONS_TAG = "mlflow.modelVersions"
EXAMPLE = {"seconds": 1.0, "temperature": 1.0, "top_p": 1.0, "seed": 0}
# Of an installed package: what is no code.
NOT_CODE = ("__pycache__", "shipped", "recipes", "data_prep")


class SpeakingModel:
    """What mlflow loads: makes the waveforms of `audio_ct.sample`, and so of `audio-ct sample`."""

    def __init__(self, model: Pretrained) -> None:
        self._model = model

    def predict(self, wanted: Any) -> list[dict[str, Any]]:
        """Make a waveform for each row.

        Args:
            wanted: a data frame with the column seconds, and perhaps temperature, top_p and seed; empty cells are as
                columns that are not there.

        Returns:
            For each row a float32 "waveform" [time], full scale 1, and its "sample_rate_hz".

        Raises:
            InputError: for a value out of range.
        """
        rows = [{name: value for name, value in row.items() if value == value} for row in wanted.to_dict("records")]
        rate_hz = self._model.codec.sample_rate_hz
        return [{"waveform": api.sample(self._model, **row)[0], "sample_rate_hz": rate_hz} for row in rows]


def _load_pyfunc(path: str) -> SpeakingModel:
    """Load the model of an exported folder; mlflow asks for it by this name."""
    return SpeakingModel(pretrained.load(path))


def log_model(model: Pretrained, *, uri: str | None = None, register: str | None = None) -> str:
    """Put a run's checkpoint into mlflow, as a model of the run that trained it; once, however often it is asked for.

    What the run's metrics say of the checkpoint's step becomes the model's own.

    Args:
        model: a checkpoint of a run that mlflow has.
        uri: address of the store; by default that of the run's recipe.
        register: a name in mlflow's registry, which gets a version of this model unless it has one.

    Returns:
        Lines that say what it is called there.

    Raises:
        MissingError: if the store has no run of it.
        InputError: if it is not a checkpoint of a run or a model of bytes, the run has no tracking and no store is
            named, or the registry takes no such name.
        AudioCTError: if the store fails.
    """
    run_folder = run_of(model.path)
    if run_folder is None:
        raise InputError(
            f"{model.path}: not in the folder of a run, by which its mlflow run is found; name a folder that train "
            "--run-dir made, or a checkpoint in one."
        )
    if model.codec.sample_rate_hz is None:
        raise InputError(f"{model.label} is a model of bytes; name a model of audio.")
    if register is not None and not re.fullmatch(r"\w[\w .-]*", register):
        raise InputError(
            f"register={register!r} must be a name of letters, digits, '_', '-', '.' and spaces; choose another."
        )
    run = mlflow_run(run_folder, uri)
    store = without_password(run.uri)
    try:
        run.open(make=False)
        logged = _logged(run, model)
        _give_metrics(run, logged, model.manifest.step)
        address = f"models:/{logged.model_id}"
        lines = [f"{model.label}: model {logged.name} of mlflow run {run.id}, {store}"]
        if register is not None:
            version = _registered(run, logged, register, _description(model))
            address = f"models:/{register}/{version}"
            lines.append(f"registered: {register}, version {version}")
    except AudioCTError:
        raise
    # mlflow, its store and its transport can raise anything.
    except Exception as error:
        raise AudioCTError(
            f"{run_folder}: sending the model to {store} failed ({as_line(error)}); repeat the command once the store "
            "answers."
        ) from error
    return "\n".join([*lines, f'load: mlflow.set_tracking_uri("{store}"); mlflow.pyfunc.load_model("{address}")'])


def _logged(run: "MlflowRun", model: Pretrained) -> "LoggedModel":
    """The model in the store, sent there unless it is there; what a killed process left half sent is removed."""
    client = run.client
    experiment = client.get_run(run.id).info.experiment_id
    digest = model.manifest.files[checkpoint.MODEL_FILE].sha256
    own = f"source_run_id = '{run.id}' AND tags.`{WEIGHTS_TAG}` = '{digest}'"
    for found in client.search_logged_models([experiment], own):
        if found.status == "READY":
            return found
        client.delete_logged_model(found.model_id)
    from mlflow.entities import LoggedModelOutput

    manifest = model.manifest
    facts = {"step": manifest.step, "tokens": manifest.tokens, **manifest.model}
    logged = client.create_logged_model(
        experiment,
        name=re.sub(r"[/:.%\"']", "-", model.recipe.name),
        source_run_id=run.id,
        tags={WEIGHTS_TAG: digest, NOTE_TAG: _description(model)},
        params={name: str(value) for name, value in facts.items()},
    )
    with tempfile.TemporaryDirectory() as folder:
        client.log_model_artifacts(logged.model_id, str(_saved(model, logged, run.id, Path(folder))))
    client.log_outputs(run.id, [LoggedModelOutput(logged.model_id, manifest.step)])
    return client.finalize_logged_model(logged.model_id, "READY")


def _description(model: Pretrained) -> str:
    """A checkpoint in a sentence, for mlflow's pages of it."""
    manifest = model.manifest
    return (
        f"{KINDS[model.recipe.model.kind]} after {manifest.step:,} steps, {manifest.tokens:,} samples of "
        f"{model.codec}. Its predict makes a waveform for each row of seconds, temperature, top_p and seed."
    )


def _saved(model: Pretrained, logged: "LoggedModel", run_id: str, folder: Path) -> Path:
    """Write the model as mlflow reads one, into a new folder within `folder`."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    package = Path(__file__).parent
    code = shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns(*NOT_CODE))
    saved = folder / "model"
    save_model(
        str(saved),
        loader_module=__name__,
        data_path=str(export(model, folder / logged.name)),
        code_paths=[str(code)],
        signature=_signature(),
        input_example=[EXAMPLE],
        pip_requirements=_requirements(),
        mlflow_model=Model(run_id=run_id, model_id=logged.model_id, model_uuid=logged.model_id),
    )
    return saved


def _signature() -> "ModelSignature":
    """The columns that `predict` reads, and those that it returns."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    wanted = {
        "seconds": DataType.double,
        "temperature": DataType.double,
        "top_p": DataType.double,
        "seed": DataType.long,
    }
    return ModelSignature(
        inputs=Schema([ColSpec(kind, name, required=name == "seconds") for name, kind in wanted.items()]),
        outputs=Schema([ColSpec(Array(DataType.float), "waveform"), ColSpec(DataType.long, "sample_rate_hz")]),
    )


def _requirements() -> list[str]:
    """The packages that this one needs, each at the version that is installed here."""
    needed = [line for line in metadata.requires("audio-ct") or [] if "extra ==" not in line]
    names = [re.split(r"[^\w.-]", line)[0] for line in needed]
    # A build such as +cpu is not everywhere.
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


def _give_metrics(run: "MlflowRun", logged: "LoggedModel", step: int) -> None:
    """Let points that the run has at a step be the model's too."""
    from mlflow.entities import Metric

    client = run.client
    names = client.get_run(run.id).data.metrics
    points = [
        Metric(point.key, point.value, point.timestamp, point.step, model_id=logged.model_id)
        for name in names
        if name == "validation_bits_per_sample" or "_split_" in name
        for point in client.get_metric_history(run.id, name)
        if point.step == step
    ]
    client.log_batch(run.id, metrics=points)


def _registered(run: "MlflowRun", logged: "LoggedModel", name: str, description: str) -> str:
    """The version of a registered model that is this one, made unless there is one."""
    from mlflow.exceptions import MlflowException

    client = run.client
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not its models:/ address, which mlflow would look for in the store that it is set to in this process.
    source = logged.artifact_location
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.source == source:
            return str(version.version)
    made = client.create_model_version(name, source, run.id, description=description, model_id=logged.model_id).version
    versions = [*json.loads(logged.tags.get(VERSIONS_TAG, "[]")), {"name": name, "version": str(made)}]
    client.set_logged_model_tags(logged.model_id, {VERSIONS_TAG: json.dumps(versions)})
    return str(made)
