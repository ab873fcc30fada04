"""The registry's versions and aliases in a real store; who moves them are real processes, some of which are killed."""

import json
import signal
import threading
from dataclasses import asdict

import mlflow
import pytest

from classifier.project.ownership import mark
from classifier.runs import registry as module
from classifier.runs.registry import PREVIOUS, PROMOTED_TAG, ROLLED_BACK_TAG, Move, Registry
from classifier.tracking.delivery import open_store
from tests.recorded import own_store
from tests.rivals import PROCESSES, die_before, race


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store that this module's tests share, each with a registered model of its own."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(autouse=True)
def store(root):
    with own_store(root):
        yield open_store()


@pytest.fixture
def registry(request):
    return Registry("".join(letter if letter.isalnum() else "-" for letter in request.node.name))


def model(number):
    """A logged model of a run, without files, and the tags of its version."""
    client = mlflow.MlflowClient()
    experiment = open_store()
    run = client.create_run(experiment)
    logged = client.create_logged_model(experiment, source_run_id=run.info.run_id)
    client.finalize_logged_model(logged.model_id, "READY")
    return logged.model_id, {"model.weights_sha256": f"weights {number}", "data.test_sha256": "images", "more": "yes"}


def state(registry):
    """Aliases, the number of versions, and whether the lock is gone."""
    versions = registry.client.search_model_versions(f"name = '{registry.name}'")
    locks = registry.client.search_registered_models(f"name = '{registry.lock}'")
    return registry.aliases(), len(versions), not locks


def test_a_name_that_nobody_used_has_no_aliases(registry):
    registry.settle()
    assert state(registry) == ({}, 0, True)


def test_promotions_move_champion_and_previous(registry, capsys):
    models = [model(number) for number in range(3)]
    assert registry.promote(*models[0], None) == "1"
    assert state(registry) == ({"champion": "1"}, 1, True)
    assert registry.promote(*models[1], "1") == "2"
    assert registry.promote(*models[2], "2") == "3"
    assert state(registry) == ({"champion": "3", "previous": "2"}, 3, True)
    version = registry.version("3")
    assert version.tags.pop(PROMOTED_TAG) > registry.version("2").tags[PROMOTED_TAG]
    assert version.tags == models[2][1]
    assert registry.run_of("3").info.run_id == mlflow.get_logged_model(models[2][0]).source_run_id
    assert capsys.readouterr() == ("", "")


def test_a_model_keeps_its_version(registry):
    one, two = model(1), model(2)
    registry.promote(*one, None)
    registry.promote(*two, "1")
    assert registry.promote(*one, "2") == "1"
    assert state(registry) == ({"champion": "1", "previous": "2"}, 2, True)
    assert registry.promote(*one, "1") == "1"
    assert state(registry) == ({"champion": "1", "previous": "2"}, 2, True)


def test_the_same_weights_on_other_test_images_are_another_version(registry):
    model_id, tags = model(1)
    registry.promote(model_id, tags, None)
    assert registry.promote(model_id, tags | {"data.test_sha256": "others"}, "1") == "2"


def test_a_promotion_that_was_judged_against_another_champion_changes_nothing(registry):
    one, two = model(1), model(2)
    with pytest.raises(ValueError, match=r"^nobody is .*@champion in the meantime: nothing was changed, run it again$"):
        registry.promote(*one, "7")
    registry.promote(*one, None)
    with pytest.raises(ValueError, match=r"^version 1 became .*@champion in the meantime: nothing was changed"):
        registry.promote(*two, None)
    assert state(registry) == ({"champion": "1"}, 1, True)


def test_rolling_back_lets_both_change_places_once(registry):
    one, two = model(1), model(2)
    registry.promote(*one, None)
    registry.promote(*two, "1")
    registry.roll_back()
    assert state(registry) == ({"champion": "1", "previous": "2"}, 2, True)
    assert registry.version("2").tags[ROLLED_BACK_TAG] > registry.version("2").tags[PROMOTED_TAG]
    run_id = registry.run_of("2").info.run_id
    with pytest.raises(
        ValueError, match=rf"was itself rolled back at .*, so version 1 stays: classifier promote {run_id}"
    ):
        registry.roll_back()
    assert state(registry) == ({"champion": "1", "previous": "2"}, 2, True)

    registry.promote(*two, "1")  # someone wants it nevertheless
    assert state(registry) == ({"champion": "2", "previous": "1"}, 2, True)
    registry.roll_back()
    assert registry.aliases() == {"champion": "1", "previous": "2"}


def test_there_must_be_something_to_roll_back_to(registry):
    with pytest.raises(ValueError, match="has no @previous to go back to"):
        registry.roll_back()
    registry.promote(*model(1), None)
    with pytest.raises(ValueError, match="has no @previous to go back to"):
        registry.roll_back()
    assert state(registry) == ({"champion": "1"}, 1, True)


def test_a_version_whose_run_is_gone_has_none(registry):
    registry.client.create_registered_model(registry.name)
    registry.client.create_model_version(registry.name, "file:///nowhere")
    assert registry.run_of("1") is None


def hold(registry, **tags):
    registry.client.create_registered_model(registry.lock, tags)


def dead():
    """The mark of a process of this machine that ended long ago."""
    return mark().rpartition(":")[0] + ":0.00"


def test_the_lock_of_another_machine_is_waited_for(registry):
    one = model(1)
    hold(registry, holder="elsewhere:1:1.00")
    thread = threading.Timer(0.5, lambda: registry.client.delete_registered_model(registry.lock))
    thread.start()
    assert registry.promote(*one, None) == "1"
    assert not thread.is_alive()


def test_what_another_machine_left_is_finished_after_a_while(registry, monkeypatch):
    monkeypatch.setattr(module, "DEAD_S", 0.3)
    for number in (1, 2):
        registry.promote(*model(number), str(number - 1) if number > 1 else None)
    registry.client.set_registered_model_alias(registry.name, PREVIOUS, "2")  # it came so far
    hold(registry, **move("elsewhere:1:1.00", "1", "2", "2", ROLLED_BACK_TAG))
    registry.settle()
    assert state(registry) == ({"champion": "1", "previous": "2"}, 2, True)
    assert registry.version("2").tags[ROLLED_BACK_TAG] == "2026"


def move(holder, *where):
    """What the lock of `holder` notes."""
    return {"holder": holder, "move": json.dumps(asdict(Move(*where, "2026")) | {"holder": holder})}


def test_a_left_move_to_a_version_that_was_deleted_is_dropped(registry):
    registry.promote(*model(1), None)
    hold(registry, **move(dead(), "9", "1", "9", PROMOTED_TAG))
    registry.settle()
    assert state(registry) == ({"champion": "1"}, 1, True)


def test_a_note_of_one_who_lost_the_lock_is_not_carried_out(registry):
    """It saw the lock as its own, and wrote into that of another who died without a note."""
    registry.promote(*model(1), None)
    registry.promote(*model(2), "1")
    hold(registry, **move("elsewhere:1:1.00", "1", "2", "2", ROLLED_BACK_TAG) | {"holder": dead()})
    registry.settle()
    assert state(registry) == ({"champion": "2", "previous": "1"}, 2, True)


def test_who_lost_the_lock_changes_nothing(registry):
    class Slow(Registry):
        def version_of(self, weights, test_data):  # meanwhile it was taken for dead
            self.client.delete_registered_model(self.lock)
            hold(self, holder="elsewhere:1:1.00")
            return super().version_of(weights, test_data)

    registry.promote(*model(1), None)
    with pytest.raises(ValueError, match="another promotion went first: nothing was changed"):
        Slow(registry.name).promote(*model(2), "1")
    assert registry.aliases() == {"champion": "1"}
    assert registry.client.get_registered_model(registry.lock).tags["holder"] == "elsewhere:1:1.00"


def test_a_model_that_has_the_locks_name_is_left_alone(registry):
    registry.client.create_registered_model(registry.lock)
    with pytest.raises(ValueError, match="is in the way"):
        registry.promote(*model(1), None)
    assert registry.client.get_registered_model(registry.lock).tags == {}


def killed(registry, root, writes, work, *arguments):
    process = PROCESSES.Process(target=die_before, args=(writes, str(root), registry.name, work, *arguments))
    process.start()
    process.join(60)
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("writes", range(10))
def test_a_promotion_killed_anywhere_is_finished_or_forgotten(registry, root, writes):
    """The lock, model, version, its link, note, two aliases, tag, lock: nine writes, and a tenth that never comes."""
    one, two, three = model(1), model(2), model(3)
    registry.promote(*one, None)
    assert killed(registry, root, writes, "promote", *two, "1") == (writes < 9)
    assert registry.aliases()["champion"] in "12"

    registry.settle()
    aliases, versions, unlocked = state(registry)
    assert unlocked
    noted = writes > 4
    assert aliases == ({"champion": "2", "previous": "1"} if noted else {"champion": "1"})
    assert versions == (2 if writes > 2 else 1)
    if versions == 2:
        assert (PROMOTED_TAG in registry.version("2").tags) == noted

    number = registry.promote(*(three if noted else two), aliases["champion"])
    assert registry.aliases() == {"champion": number, "previous": aliases["champion"]}
    assert state(registry)[1] == (3 if noted else 2)  # what was registered before it was killed is not made again


@pytest.mark.parametrize("writes", range(1, 6))
def test_a_rollback_killed_anywhere_is_finished_or_forgotten(registry, root, writes):
    registry.promote(*model(1), None)
    registry.promote(*model(2), "1")
    assert killed(registry, root, writes, "roll_back")
    registry.settle()
    before, after = {"champion": "2", "previous": "1"}, {"champion": "1", "previous": "2"}
    assert state(registry) == (before if writes == 1 else after, 2, True)
    assert (ROLLED_BACK_TAG in registry.version("2").tags) == (writes > 1)


def test_of_two_promotions_at_once_one_wins_and_the_other_says_so(registry, root):
    rounds = 8
    names = [Registry(f"{registry.name}-{number}") for number in range(rounds)]
    for number, each in enumerate(names):
        if number % 2:  # in every other round there is a champion
            each.promote(*model(0), None)
        if number % 4 > 1:  # and a lock that a killed process left
            hold(each, holder=dead())
    barrier, answers = PROCESSES.Barrier(2), PROCESSES.Queue()
    racers = [
        PROCESSES.Process(target=race, args=(str(root), registry.name, rounds, barrier, answers, model(number)))
        for number in (1, 2)
    ]
    for racer in racers:
        racer.daemon = True  # should this test fail
        racer.start()
    found = [answers.get(timeout=120) for _ in range(2 * rounds)]
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0]
    for number, each in enumerate(names):
        (won,) = (version for at, version, _ in found if at == number and version)
        (said,) = (error for at, _, error in found if at == number and error)
        assert said == f"version {won} became {each.name}@champion in the meantime: nothing was changed, run it again"
        before = {"previous": "1"} if number % 2 else {}
        assert state(each) == ({"champion": won, **before}, 1 + number % 2, True)
