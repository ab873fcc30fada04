"""The registry's versions and aliases in a real store; who moves them are real processes, some of which are killed."""

import signal

import mlflow
import pytest

from classifier.runs.registry import AT_TAG, Registry
from classifier.tracking.connection import open_store
from tests.recorded import own_store
from tests.rivals import PROCESSES, die_before, race, stop_before


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
    return logged.model_id, {
        "mlflow.classifier.weights_sha256": f"weights {number}",
        "mlflow.classifier.test_sha256": "images",
        "more": "yes",
    }


def state(registry):
    """The champion, the version that it replaced, and the number of versions."""
    versions = registry.client.search_model_versions(f"name = '{registry.name}'")
    return registry.champion(), registry.replaced(), len(versions)


def promoted(registry, *numbers):
    """Promote models with these numbers one after the other; the models."""
    models = [model(number) for number in numbers]
    for each in models:
        registry.promote(*each, registry.champion())
    return models


def test_a_name_that_nobody_used_has_no_champion(registry):
    assert state(registry) == (None, None, 0)


def test_a_version_says_which_one_it_replaced(registry, capsys):
    models = [model(number) for number in range(3)]
    assert registry.promote(*models[0], None) == "1"
    assert state(registry) == ("1", None, 1)
    assert registry.promote(*models[1], "1") == "2"
    assert registry.promote(*models[2], "2") == "3"
    assert state(registry) == ("3", "2", 3)
    tags = registry.version("3").tags
    assert tags.pop(AT_TAG) > registry.version("2").tags[AT_TAG]
    assert tags == models[2][1] | {"promotion.replaces": "2", "promotion.way": "promoted"}
    assert registry.run_of("3").info.run_id == mlflow.get_logged_model(models[2][0]).source_run_id
    assert [model.name for model in registry.client.search_registered_models(f"name LIKE '{registry.name}%'")] == [
        registry.name
    ]
    assert capsys.readouterr() == ("", "")


def test_a_model_keeps_its_version(registry):
    one, _ = promoted(registry, 1, 2)
    assert registry.promote(*one, "2") == "1"
    assert state(registry) == ("1", "2", 2)
    assert registry.promote(*one, "1") == "1"
    assert state(registry) == ("1", "2", 2)


def test_the_same_weights_on_other_test_images_are_another_version(registry):
    model_id, tags = model(1)
    registry.promote(model_id, tags, None)
    assert registry.promote(model_id, tags | {"mlflow.classifier.test_sha256": "others"}, "1") == "2"


def test_a_promotion_that_was_judged_against_another_champion_changes_nothing(registry):
    one, two = model(1), model(2)
    with pytest.raises(
        ValueError, match=r"^no version is .*@champion in the meantime: nothing was changed, run it again$"
    ):
        registry.promote(*one, "7")
    registry.promote(*one, None)
    with pytest.raises(ValueError, match=r"^version 1 became .*@champion in the meantime: nothing was changed"):
        registry.promote(*two, None)
    assert state(registry) == ("1", None, 1)


def test_a_champion_that_moves_while_a_version_is_registered_stays(registry):
    """As on a server, where another machine's promotion knows nothing of this project's lock."""

    class Slow(Registry):
        def _register(self, model_id, tags):
            self.client.set_registered_model_alias(self.name, "champion", "1")
            return super()._register(model_id, tags)

    promoted(registry, 1, 2)
    with pytest.raises(ValueError, match=r"^version 1 became .*@champion in the meantime: nothing was changed"):
        Slow(registry.name).promote(*model(3), "2")
    assert registry.champion() == "1"


def test_rolling_back_makes_the_replaced_version_the_champion_once(registry):
    _, two = promoted(registry, 1, 2)
    registry.roll_back()
    assert state(registry) == ("1", "2", 2)
    refusal = (
        rf"version 2 was itself rolled back at 20.*, so version 1 stays .*: classifier promote {run_of(registry, '2')} "
    )
    with pytest.raises(ValueError, match=refusal):
        registry.roll_back()
    assert state(registry) == ("1", "2", 2)

    registry.promote(*two, "1")  # someone wants it nevertheless
    assert state(registry) == ("2", "1", 2)
    registry.roll_back()
    assert state(registry) == ("1", "2", 2)


def test_after_a_rollback_the_next_promotion_can_be_rolled_back(registry):
    promoted(registry, 1, 2)
    registry.roll_back()
    promoted(registry, 3)
    assert state(registry) == ("3", "1", 3)
    registry.roll_back()
    assert state(registry) == ("1", "3", 3)


def test_there_must_be_something_to_roll_back_to(registry):
    with pytest.raises(ValueError, match="@champion replaced no version: classifier promote RUN promotes a run"):
        registry.roll_back()
    promoted(registry, 1)
    with pytest.raises(ValueError, match="@champion replaced no version"):
        registry.roll_back()
    assert state(registry) == ("1", None, 1)


def run_of(registry, number):
    return registry.run_of(number).info.run_id


def test_a_version_whose_run_is_gone_has_none(registry):
    registry.client.create_registered_model(registry.name)
    registry.client.create_model_version(registry.name, "file:///nowhere")
    assert registry.run_of("1") is None


def old_registry(registry, champion, previous, **tags):
    """Two versions as commit 31cce96 promoted them: @previous is an alias, and a rollback is a tag of what it undid."""
    for number in (1, 2):
        model_id, given = model(number)
        mlflow.register_model(f"models:/{model_id}", registry.name, tags=given | {"promotion.at": f"2026-11-0{number}"})
    registry.client.set_registered_model_alias(registry.name, "champion", champion)
    registry.client.set_registered_model_alias(registry.name, "previous", previous)
    for tag, value in tags.items():
        registry.client.set_model_version_tag(registry.name, previous, f"promotion.{tag}", value)


def test_versions_that_an_older_pipeline_promoted_are_rolled_back(registry):
    old_registry(registry, "2", "1")
    assert state(registry) == ("2", "1", 2)
    registry.roll_back()
    assert state(registry) == ("1", "2", 2)
    assert registry._aliases() == {"champion": "1", "previous": "2"}
    promoted(registry, 3)
    assert state(registry) == ("3", "1", 3)
    assert registry._aliases() == {"champion": "3", "previous": "1"}


def test_what_an_older_pipeline_rolled_back_stays_so(registry):
    old_registry(registry, "1", "2", rolled_back_at="2026-11-03")
    with pytest.raises(ValueError, match="version 2 was itself rolled back at 2026-11-03, so version 1 stays"):
        registry.roll_back()
    assert state(registry) == ("1", "2", 2)


class Killed(BaseException):
    """Ends the work as a kill does: the code under test catches and cleans up nothing."""


@pytest.fixture
def killed(registry, monkeypatch):
    """`killed(writes, work, *arguments)`: whether the registry's method ended at its write with this number."""

    def stop():
        raise Killed

    def killed(writes, work, *arguments):
        with monkeypatch.context() as patch:
            stop_before(writes, stop, patch.setattr)
            try:
                getattr(registry, work)(*arguments)
            except Killed:
                return True
        return False

    return killed


def test_a_promotion_whose_process_is_killed_has_changed_nothing(registry, root):
    promoted(registry, 1)
    two = model(2)
    process = PROCESSES.Process(target=die_before, args=(6, str(root), registry.name, "promote", *two, "1"))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert state(registry) == ("1", None, 2)
    assert registry.promote(*two, "1") == "2"
    assert state(registry) == ("2", "1", 2)


@pytest.mark.parametrize("writes", range(8))
def test_a_promotion_killed_anywhere_has_changed_nothing(registry, killed, writes):
    """The model, version, its link, three tags, and the alias: seven writes, and an eighth that never comes."""
    promoted(registry, 1, 2)
    three = model(3)
    assert killed(writes, "promote", *three, "2") == (writes < 7)
    assert state(registry) == (("3", "2", 3) if writes == 7 else ("2", "1", 3 if writes > 1 else 2))

    promoted(registry, 4 if writes == 7 else 3)
    assert state(registry) == (("4", "3", 4) if writes == 7 else ("3", "2", 3))  # a version is not made twice


@pytest.mark.parametrize("writes", range(5))
def test_a_repeated_promotion_killed_anywhere_has_changed_nothing(registry, killed, writes):
    """Of a version that was rolled back: three tags and the alias."""
    _, two = promoted(registry, 1, 2)
    registry.roll_back()
    assert killed(writes, "promote", *two, "1") == (writes < 4)
    if writes == 4:
        assert state(registry) == ("2", "1", 2)
    else:
        assert state(registry) == ("1", "2", 2)
        with pytest.raises(ValueError, match="version 2 was itself rolled back"):
            registry.roll_back()


@pytest.mark.parametrize("writes", range(5))
def test_a_rollback_killed_anywhere_has_changed_nothing(registry, killed, writes):
    promoted(registry, 1, 2)
    assert killed(writes, "roll_back") == (writes < 4)
    if writes < 4:
        assert state(registry) == ("2", "1", 2)
        registry.roll_back()
    assert state(registry) == ("1", "2", 2)


def test_of_two_promotions_at_once_one_wins_and_the_other_says_so(registry, root):
    rounds = 8
    names = [Registry(f"{registry.name}-{number}") for number in range(rounds)]
    for number, each in enumerate(names):
        if number % 2:  # in every other round there is a champion
            promoted(each, 0)
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
        assert state(each) == (won, "1" if number % 2 else None, 1 + number % 2)


def test_a_version_has_the_description_of_its_run_and_the_model_says_how_it_is_loaded(registry):
    model_id, tags = model(1)
    run_id = registry.client.get_logged_model(model_id).source_run_id
    registry.client.set_tag(run_id, "mlflow.note.content", "**lenet5** trained on **digits**")
    number = registry.promote(model_id, tags, None)
    name = registry.client.get_run(run_id).info.run_name
    assert registry.version(number).description == f"Run **{name}**\n\n**lenet5** trained on **digits**"
    told = registry.client.get_registered_model(registry.name).description
    assert f'load_model("models:/{registry.name}@champion")' in told


def test_a_version_of_before_is_found_by_its_tags_of_then(registry):
    model_id, _ = model(1)
    before = {"model.weights_sha256": "weights 1", "data.test_sha256": "images"}
    registry.client.create_registered_model(registry.name)
    registry.client.create_model_version(registry.name, f"models:/{model_id}", tags=before)
    assert registry.version_of("weights 1", "images").version == 1
    assert registry.version_of("weights 1", "others") is None
