"""A store that fails while a run trains: what was saved stays, training goes on with an alarm, then it is bounded."""

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.adapters.storage import Storage
from dist_trainer.config.load import load_config
from dist_trainer.errors import StorageError
from dist_trainer.launchers.existing import rewrite_config
from dist_trainer.launchers.forkserver import _Log
from dist_trainer.run_folder import RunFolder
from dist_trainer.tracking.journal import history, iterate_journal, saved_checkpoints
from tests.faults.ledger import is_whole, record
from tests.faults.small_run import events, fit, make_run, train_command, weights
from tests.faults.victims import store_of
from tests.object_store import bucket, faulty_proxy, open_storage, s3_endpoint  # noqa: F401
from tests.ranks import RankFailed

pytestmark = pytest.mark.timeout(600 if is_whole() else 120)
Open = Callable[..., Storage]
REFUSED = "older checkpoints are untouched, training goes on"
HOOK = "hooks=[{target: tests.faults.weather.%s}]"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 700 kB. Skipped where none can be mounted; a limit on the size of files stands in for it there."""
    place = tmp_path / "small-disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k,mode=700", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here; RLIMIT_FSIZE stands in for it")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(params=["tmpfs", "RLIMIT_FSIZE"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, str]:
    """What fills up, where, and the argument of a hook that fills it."""
    if request.param == "tmpfs":
        place = request.getfixturevalue("small_disk")
        return request.param, place, f", folder: {place}"
    return request.param, tmp_path / "disk", ""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a run that nothing happened to."""
    run = make_run(tmp_path_factory.mktemp("untouched"))
    fit(run)
    return weights(run)


def alarms(run: RunFolder) -> list[str]:
    return [str(event["message"]) for event in events(run, "alarm")]


def steps_saved(run: RunFolder) -> list[int]:
    return [int(name[5:14]) for name in saved_checkpoints(run.journal_path(0))]


def the_rest_is_whole(storage: Storage) -> list[int]:
    """The steps of the checkpoints there, newest first, after each was verified."""
    store = store_of(storage, 0)
    for checkpoint in store.list():
        store.verify(checkpoint)
    return [checkpoint.step for checkpoint in store.list()]


def test_a_full_disk_under_the_checkpoints_costs_the_saves_that_do_not_fit_and_nothing_else(
    disk: tuple[str, Path, str], tmp_path: Path, reference: str
) -> None:
    kind, place, argument = disk
    hook = f"hooks=[{{target: tests.faults.weather.FullDisk, first: 7, last: 17{argument}}}]"
    run = make_run(tmp_path, f"checkpoint.folder={place}", hook)
    fit(run)
    assert [message.partition(",")[0] for message in alarms(run) if REFUSED in message] == [
        "step 10 was not saved",
        "step 15 was not saved",
    ]
    saved = Storage(run.checkpoint_url(str(place)))
    assert steps_saved(run) == [5, 20, 25, 30] and the_rest_is_whole(saved) == [30, 25, 20]
    assert run.status.state == "finished"
    newest = Path(saved.url) / "step-000000030-f0001" / "model.safetensors"
    assert _weights_at(newest) == reference
    record(f"full disk under the checkpoints ({kind})", tried=1, lost=0, note="2 saves refused, 2 alarms")


def _weights_at(model: Path) -> str:
    return f"{model.parent.name[:14]} {hashlib.sha256(model.read_bytes()).hexdigest()}"


def test_training_that_cannot_save_ends_at_the_bound_and_goes_on_once_there_is_room(
    disk: tuple[str, Path, str], tmp_path: Path, reference: str
) -> None:
    kind, place, argument = disk
    hook = f"hooks=[{{target: tests.faults.weather.Unsaved, first: 7{argument}}}]"
    bound = "checkpoint.max_staleness_minutes=0.04"
    run = make_run(tmp_path, f"checkpoint.folder={place}", bound, hook, "train.steps=1000")
    with pytest.raises(RankFailed, match=r"no checkpoint could be saved for 0\.04 minutes") as ended:
        fit(run)
    assert "the checkpoint of step 5 is untouched" in str(ended.value)
    assert "see to the store, then the same command goes on from there" in str(ended.value)
    assert the_rest_is_whole(Storage(run.checkpoint_url(str(place)))) == [5]
    (place / "filler").unlink(missing_ok=True)
    rewrite_config(run, load_config([tmp_path / "run.yaml"], [f"checkpoint.folder={place}"]).config)
    fit(run)
    assert [event["first_step"] for event in events(run, "started")] == [0, 5]
    assert (
        _weights_at(max(Path(run.checkpoint_url(str(place))).glob("step-*/model.safetensors"))) == reference
    )
    record(f"full disk for longer than the bound ({kind})", tried=1, lost=0, note="ended, then went on")


def test_a_full_disk_under_the_run_folder_itself_is_survived_by_the_whole_command(
    small_disk: Path, reference: str
) -> None:
    hook = f"hooks=[{{target: tests.faults.weather.FullDisk, first: 7, last: 17, folder: {small_disk}}}]"
    (small_disk / "home").mkdir()
    run = make_run(small_disk / "home", hook)
    command = train_command(small_disk / "home", hook)
    assert command.process.returncode == 0, command.stderr
    assert f"warning: step 10 was not saved, {REFUSED}" in command.stdout
    assert "could not be written for" in command.stdout and "nothing of it is lost" in command.stdout
    points = history(run.journal_path(0))["train/loss"]
    assert list(points) == list(range(1, 31)), "metrics were kept until there was room"
    assert steps_saved(run)[:2] == [5, 20] and weights(run) == reference
    log = run.log_path(1, 0).read_text()
    assert "step 7 is in the log" in log and "step 20 is in the log" in log
    assert "step 12 is in the log" not in log, "the disk was full"
    record("full disk under the run folder", tried=1, lost=0, note="30 of 30 points, by the command")


def test_a_disk_that_is_full_at_the_end_is_one_message_and_then_the_run_is_finished(
    small_disk: Path, reference: str
) -> None:
    hook = f"hooks=[{{target: tests.faults.weather.FullDisk, first: 27, last: 1000, folder: {small_disk}}}]"
    (small_disk / "home").mkdir()
    run = make_run(small_disk / "home", hook)
    command = train_command(small_disk / "home", hook)
    assert command.process.returncode == 1 and "Traceback" not in command.stderr
    assert "cannot be written: No space left on device; make room" in command.stderr
    (small_disk / "filler").unlink()
    # on disk and not in the journal: that of step 25 may not have ended in time, or its line found no place
    saved = max(int(path.parent.name[5:14]) for path in run.checkpoints.glob("step-*/COMMIT.json"))
    rewrite_config(run, load_config([small_disk / "home" / "run.yaml"]).config)
    fit(run)
    # as the toolkit reads it: the disk may have taken the half of a line
    journal = [line for line, _ in iterate_journal(run.journal_path(0))]
    assert [line["first_step"] for line in journal if line["kind"] == "started"] == [0, saved]
    assert run.status.state == "finished" and weights(run) == reference
    record("full disk at the end of a run", tried=1, lost=0, note="exit code 1, then finished")


def test_a_log_that_takes_nothing_loses_lines_and_no_training() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    stream = _Log.open(descriptor)
    for _ in range(3):
        print("x" * 10_000, file=stream, flush=True)
    stream.write("left in the buffer")
    stream.close()
    os.close(descriptor)
    record("/dev/full for a log", tried=1, lost=0)


FAULTS: dict[int, tuple[str, dict[str, Any]]] = {
    10: ("500 to every request", {"": 500}),
    20: ("503 SlowDown to every request", {"": 503}),
    30: ("reset before the store has it, every time", {"": "lose request"}),
    40: ("412 to the marker", {"/COMMIT.json": 412}),
    50: ("409 to the marker, every time", {"/COMMIT.json": 409}),
    55: ("500, then 503, then a reset", {"/model": [500, 503, "lose request"]}),
    60: ("reset after the store took a file", {"/training.json": ["lose reply"]}),
    65: ("reset after the store took the marker", {"/COMMIT.json": ["lose reply"]}),
    70: ("409 to the marker, once", {"/COMMIT.json": [409]}),
    75: ("slow replies", {"": 0.1}),
}
NOT_SAVED = (10, 20, 30, 40, 50)


def test_what_a_store_on_s3_does_to_one_save_leaves_the_others_and_the_weights_as_they_are(
    s3_endpoint: str,  # noqa: F811
    bucket: str,  # noqa: F811
    open_storage: Open,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings = ["train.steps=80", "checkpoint.keep_last=100", HOOK % "Settled"]
    untouched = make_run(tmp_path / "untouched", *settings)
    fit(untouched, ranks=2)
    run = make_run(tmp_path / "run", *settings, f"checkpoint.folder={bucket}/runs")
    with faulty_proxy(s3_endpoint) as proxy:
        for step, (_, faults) in FAULTS.items():
            proxy.faults_at.update({f"step-{step:09d}-f0001{part}": what for part, what in faults.items()})
        fit(run, ranks=2, AWS_ENDPOINT_URL=proxy.url)
    refused = [int(message.split()[1]) for message in alarms(run) if REFUSED in message]
    saved = [step for step in range(5, 81, 5) if step not in NOT_SAVED]
    storage = open_storage(run.checkpoint_url(f"{bucket}/runs"))
    there = the_rest_is_whole(storage)
    for step, (name, _) in FAULTS.items():
        as_meant = (step in refused) == (step in NOT_SAVED) and (step in there) != (step in NOT_SAVED)
        before_and_after = {step - 5, 80 if step == 75 else step + 5} - set(NOT_SAVED) <= set(there)
        what = "an alarm, the next save works" if step in NOT_SAVED else "saved all the same"
        record(f"S3: {name}", tried=1, lost=int(not as_meant or not before_and_after), note=what)
    assert refused == list(NOT_SAVED)
    assert steps_saved(run) == saved and there == saved[::-1]
    model = bytes(storage.read("step-000000080-f0001/model.safetensors"))
    assert model == (untouched.checkpoints / "step-000000080-f0001" / "model.safetensors").read_bytes()


def test_replies_that_never_come_time_out_and_are_asked_for_again(
    s3_endpoint: str,  # noqa: F811
    bucket: str,  # noqa: F811
    open_storage: Open,  # noqa: F811
) -> None:
    with faulty_proxy(s3_endpoint) as proxy:
        limits = {"config_kwargs": {"read_timeout": 0.5}}
        storage = open_storage(bucket, options={"endpoint_url": proxy.url, **limits})
        proxy.faults.extend(["hang", "hang"])
        storage.write("file", b"x")
        assert bytes(storage.read("file")) == b"x"
        proxy.faults_at["other"] = "hang"
        with pytest.raises(StorageError, match="tried 4 times"):
            storage.write("other", b"x")
        storage.close()
    record("S3: time-outs", tried=2, lost=0, note="asked again; then an error")


def test_a_store_that_never_answers_does_not_keep_training_from_ending(
    s3_endpoint: str,  # noqa: F811
    bucket: str,  # noqa: F811
    open_storage: Open,  # noqa: F811
    tmp_path: Path,
) -> None:
    bound = "checkpoint.max_staleness_minutes=0.05"
    run = make_run(tmp_path, f"checkpoint.folder={bucket}", bound)
    with faulty_proxy(s3_endpoint) as proxy:
        proxy.faults_at["step-000000030"] = "hang"
        with pytest.raises(RankFailed, match="the save of step 30 has not ended: the store hangs"):
            fit(run, ranks=2, AWS_ENDPOINT_URL=proxy.url)
    newest = steps_saved(run)[-1]
    assert the_rest_is_whole(open_storage(run.checkpoint_url(bucket)))[0] == newest < 30
    fit(run)
    assert events(run, "started")[-1]["first_step"] == newest and run.status.state == "finished"
    record("S3: a store that never answers", tried=1, lost=0, note="training ends; then it goes on")


def test_a_listing_that_lags_behind_hides_no_checkpoint_and_has_none_deleted(
    s3_endpoint: str,  # noqa: F811
    bucket: str,  # noqa: F811
    open_storage: Open,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings = [f"checkpoint.folder={bucket}", HOOK % "Settled"]
    run = make_run(tmp_path, *settings, "train.steps=20")
    with faulty_proxy(s3_endpoint) as proxy:
        # of step 15 nothing is listed, of step 20 all but its marker; whatever else is new comes late
        hidden = ("step-000000015-f0001", "step-000000020-f0001/COMMIT")
        proxy.hide_for = lambda name: 10**6 if any(part in name for part in hidden) else 2
        fit(run, AWS_ENDPOINT_URL=proxy.url)
        rewrite_config(run, load_config([tmp_path / "run.yaml"], settings).config)
        storage = open_storage(run.checkpoint_url(bucket), options={"endpoint_url": proxy.url})
        assert [each.step for each in store_of(storage, 0).list()] == [10, 5], "as the run finds it"
        fit(run, ranks=2, AWS_ENDPOINT_URL=proxy.url)
    assert [event["first_step"] for event in events(run, "started")] == [0, 20]
    assert not alarms(run)
    storage = open_storage(run.checkpoint_url(bucket))
    there = the_rest_is_whole(storage)
    assert {30, 20, 15} <= set(there)
    assert not any("QUARANTINE.json" in storage.list(name) for name in storage.list())
    record("S3: stale listings", tried=1, lost=0, note="goes on at the step that no listing shows")
