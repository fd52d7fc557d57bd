"""Meta-training: gates, the score against NumPy, resuming, and that something is learned."""

# optax types every tree as a union of all that a tree may be, which no index satisfies:
# pyright: reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qsgd_jax as qsgd
from benchmarks import learn_circuit, learned_cost, learned_gate
from benchmarks.meta import ablations, gates, learning, objective
from benchmarks.workloads.base import Curves, Workload, learning_rates, training_run

QUICK = ("circuit-2", "multilinear", "perceptron-2", "unentangled-2")
each_gate = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in sorted(gates.all_gates())
    ],
)


def _valley():
    """A narrow quadratic valley whose floor is 0.01, and noisy gradients."""
    scales = jnp.array([1.0, 30.0])

    def loss(params, data, key):
        noise = jax.random.normal(key, (2,))
        return jnp.sum(scales * (params["x"] - data) ** 2 + 0.1 * noise * params["x"]) + 0.01

    def validation_loss(params, data):
        return jnp.sum(scales * (params["x"] - data) ** 2) + 0.01

    return Workload(
        "valley",
        "mlp",
        lambda key: {"x": jnp.zeros(2)},
        lambda key: 1 + 0.1 * jax.random.normal(key, (2,)),
        loss,
        validation_loss,
    )


@pytest.fixture
def valley(monkeypatch):
    task = _valley()
    monkeypatch.setattr("benchmarks.workloads.synthetic.task", lambda name: task)
    # Fewer lengths and learning rates to tune AdamW for.
    monkeypatch.setattr(objective, "HORIZONS", (48,))
    return task


@each_gate
def test_each_gate_answers_for_concrete_and_mapped_numbers(name):
    gate = gates.all_gates()[name]
    numbers = np.stack([gate.start(seed) for seed in (0, 1)])
    assert numbers.shape == (2, gate.size)
    signals = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    quick = {"xla_backend_optimization_level": 0}
    mapped = jax.jit(jax.vmap(lambda x: gate.build(x).readouts(*signals)), compiler_options=quick)(
        numbers
    )
    for i, row in enumerate(numbers):
        for z, expected in zip(gate.build(row).readouts(*signals), mapped, strict=True):
            np.testing.assert_allclose(z, expected[i], atol=2e-6)
    for z in mapped:
        assert np.ptp(z[0]) > 1e-3


@pytest.mark.parametrize("name", ["circuit-1", "perceptron-2", "multilinear"])
def test_the_numbers_by_hand_are_a_soft_cautious_step(name):
    gate = gates.all_gates()[name]
    numbers = np.array(gate.cautious)
    c = gates.CAUTIOUS_AGREEMENT
    others = [gates.SIGNALS.index(x) for x in gates.SIGNALS if x != "agreement"]
    numbers[np.array(others) - 3 - len(gates.SIGNALS)] = np.log(1e-3)  # as far as they are read
    u, g, theta = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    actual = gate.build(numbers).gated(u, g, theta)
    z = c * u * g / np.sqrt(1 + (c * u * g) ** 2)
    expected = 0.7 * (u * (1 + z) + 0.6 * np.tanh(g))
    # The perceptron comes as near as tanh does.
    tolerance = 0.35 if name == "perceptron-2" else 2e-3
    np.testing.assert_allclose(actual, expected, atol=tolerance)
    assert np.corrcoef(actual, expected)[0, 1] > 0.99


def test_gates_without_numbers_by_hand_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        learn_circuit.main(f"--gate circuit-2 --start cautious --output {tmp_path}".split())
    message = "--start cautious: circuit-2 has none; circuit-1, perceptron-2"
    assert message in capsys.readouterr().err


def test_without_entanglement_each_readout_sees_one_signal():
    gate = gates.unentangled()
    numbers = gate.start(3)
    numbers[-5:-3] = 0.7, -0.4  # the logarithms of the scales
    u, g, theta = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    z1, z2 = gate.build(numbers).readouts(u, g, theta)
    again1, again2 = gate.build(numbers).readouts(u, g / 2, theta + 1)
    np.testing.assert_array_equal(z2, again2)
    assert np.abs(z1 - again1).min() > 1e-4
    # By the circuit of one qubit, run at the signal and at the mirrored one: u ĝ is its own mirror.
    weights = (
        numbers[: 2 * 4].reshape(2, 2, 1, 2).transpose(1, 0, 2, 3)[::-1]
    )  # the last wire first
    u, agreement = np.exp(0.7) * u, np.exp(-0.4) * u * g
    read = (agreement, agreement), (u, -u)
    for z, signals, angles in zip((z1, z2), read, weights, strict=True):
        run = qsgd.Circuit(1, 2, weights=angles).qnode("default.qubit")
        both = [np.ravel(run(np.arctan(x)[:, None] / np.pi)) for x in signals]
        np.testing.assert_allclose(z, np.mean(both, 0), atol=2e-6)


@each_gate
def test_no_gate_tells_mirrored_signals_apart(name):
    gate = gates.all_gates()[name]
    found = gate.build(gate.start(5))
    u, g, theta = np.random.default_rng(1).normal(size=(3, 20)).astype(np.float32)
    mirrored = found.readouts(-u, -g, -theta)
    for z, same in zip(found.readouts(u, g, theta), mirrored, strict=True):
        np.testing.assert_allclose(z, same, atol=1e-6)
        assert np.ptp(z) > 1e-3


def test_the_score_is_half_the_way_and_half_the_end():
    loss = np.array([9.0, 4.0, 2.0, 1.0])
    curves = Curves(jnp.zeros(3), jnp.asarray(loss))
    expected = 0.5 * np.mean(np.log(loss[1:])) + 0.5 * np.log(loss[-1])
    np.testing.assert_allclose(objective.score(curves), expected, rtol=1e-6)


@pytest.mark.parametrize("cosine", [False, True])
def test_learning_rates_rise_and_fall_as_in_numpy(cosine):
    schedule = learning_rates(0.3, 100, warmup=0.1, cosine=cosine)
    t = np.arange(100)
    after = 0.5 * (1 + np.cos(np.pi * (t / 100 - 0.1) / 0.9)) if cosine else np.ones(100)
    expected = 0.3 * np.where(t < 10, (t + 1) / 10, after)
    np.testing.assert_allclose([schedule(i) for i in t], expected, rtol=1e-5, atol=1e-8)


def test_a_run_of_traced_length_is_that_of_a_known_one():
    import optax

    task, key = _valley(), jax.random.key(0)
    data = task.data(key)

    def run(steps):
        return training_run(task, lambda _: optax.adamw(0.1), data, key, steps=steps, points=4)

    known, traced = run(40), jax.jit(run)(jnp.int32(40))
    np.testing.assert_allclose(known.validation_loss, traced.validation_loss, rtol=1e-4)
    assert known.validation_loss[-1] < known.validation_loss[0] / 5


def test_runs_mapped_over_are_those_of_vmap():
    import optax

    task, keys = _valley(), jax.random.split(jax.random.key(0), 3)
    data, rates = jax.vmap(task.data)(keys), jnp.array([0.01, 0.1])
    options = {"steps": 20, "points": 4}

    def one(rate, data, key):
        return training_run(task, optax.adamw, data, key, rate, **options)

    expected = jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None))(rates, data, keys)
    found = training_run(
        task, optax.adamw, data, keys, rates, **options, over=[(0, 0, None), (None, None, 0)]
    )
    assert found.accuracy is None
    for curves, same in zip(found[:2], expected[:2], strict=True):
        assert curves.shape[:2] == (2, 3)
        np.testing.assert_allclose(curves, same, rtol=1e-5)
        assert np.ptp(np.asarray(curves)[..., -1], axis=0).min() > 1e-3


@pytest.mark.parametrize("name", ["circuit-2", "unentangled-2", "multilinear"])
def test_a_gate_probed_outside_the_loop_is_the_same(name):
    gate = gates.all_gates()[name]
    numbers = gate.start(2)
    signals = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    expected = gate.build(numbers).readouts(*signals)
    probed = jax.jit(gate.probed)(numbers)
    found = jax.jit(lambda x: gate.restored(x).readouts(*signals))(probed)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.slow
def test_a_candidate_without_weights_scores_as_adamw_does(valley, tmp_path):
    gate = gates.circuit(1)
    asked = objective.Objective([valley], gate, tmp_path / "rates.json")
    numbers = np.stack([np.concatenate([gate.start(0)[:-3], [0, 0, 0]]), gate.start(0)])
    episodes = [objective.Episode(0, 48, False, 1.0, seed) for seed in (5, 6)]
    same, other = asked(numbers, episodes)
    assert np.abs(same).max() < 1e-4 < np.abs(other).min()
    assert list(json.loads((tmp_path / "rates.json").read_text())) == ["valley, 48 steps"]
    for i, episode in enumerate(episodes):
        np.testing.assert_allclose(asked(numbers, [episode])[:, 0], (same[i], other[i]), atol=1e-4)
    diverging = [objective.Episode(0, 48, False, 1e9, 5)]
    np.testing.assert_array_equal(asked(numbers, diverging), [[3.0], [3.0]])
    with pytest.raises(ValueError, match="too many values"):
        asked(numbers, [*episodes, objective.Episode(0, 96, False, 1.0, 5)])


@pytest.mark.slow
def test_the_reference_of_a_score_is_optaxs_adamw(valley, tmp_path):
    import optax

    gate = gates.circuit(1)
    asked = objective.Objective([valley], gate, tmp_path / "rates.json")
    numbers = gate.start(0)[None]
    key, rate = jax.random.key(7), asked.best_learning_rate(0, 48, True)
    data_key, run_key = jax.random.split(key)
    schedule = learning_rates(rate, 48, warmup=objective.WARMUP, cosine=True)

    def scored(optimizer):
        data = valley.data(data_key)
        points = objective.POINTS
        return objective.score(
            training_run(valley, lambda _: optimizer, data, run_key, steps=48, points=points)
        )

    decay = {"weight_decay": objective.WEIGHT_DECAY}
    gated = qsgd.learned_superpositional_adamw(
        schedule, superposition=gate.build(numbers[0]), **decay
    )
    expected = scored(gated) - scored(optax.adamw(schedule, **decay))
    found = asked(numbers, [objective.Episode(0, 48, True, 1.0, 7)])
    np.testing.assert_allclose(found, [[expected]], atol=1e-4)
    assert abs(expected) > 1e-3


def test_episodes_of_a_task_share_its_length_alone():
    drawn = objective.draw_episodes(np.random.default_rng(0), 400, repeats=3)
    assert [len(group) for group in drawn] == [3] * 400
    assert all(len({(e.task, e.horizon) for e in group}) == 1 for group in drawn)
    assert all(len({e.seed for e in group}) == 3 for group in drawn)
    lengths = [group[0].horizon for group in drawn]
    odds = np.array(objective.HORIZONS) ** -0.5
    expected = np.average(objective.HORIZONS, weights=odds)
    assert abs(np.mean(lengths) / expected - 1) < 0.25
    alone = [e for group in drawn for e in group]
    assert 0.7 < np.mean([e.cosine for e in alone]) < 0.8
    assert 0.5 < min(e.learning_rate for e in alone) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("method", ["evolution", "hypergradients"])
def test_a_killed_run_goes_on_to_the_same_numbers(valley, method, tmp_path, capsys):
    def learn(folder, generations):
        learn_circuit.main(
            f"--gate circuit-1 --method {method} --population 6 --generations {generations} "
            "--tasks digits-mlp --validation digits-mlp --validation-seeds 1 "
            f"--output {folder}".split()
        )
        return json.loads((folder / "circuit-1-0" / "numbers.json").read_text())

    whole = learn(tmp_path / "whole", 4)
    learn(tmp_path / "halves", 2)
    history = tmp_path / "halves" / "circuit-1-0" / "history.jsonl"
    history.write_text(history.read_text() + '{"generat')  # killed while it wrote a line
    halves = learn(tmp_path / "halves", 4)
    assert halves["numbers"] == whole["numbers"]
    assert [line["generation"] for line in halves["history"]] == [1, 2, 3, 4]
    # What it had learned on the way is still there.
    half = learn(tmp_path / "whole", 2)
    assert half["numbers"] != whole["numbers"] and len(half["history"]) == 2
    start = learn(tmp_path / "whole", 0)
    assert start["numbers"] == gates.circuit(1).start(0).tolist()
    assert start["history"] == [] and start["score"] is None
    assert start["validation"] != half["validation"]
    assert learn(tmp_path / "whole", 4) == whole
    shipped = qsgd.load_superposition(tmp_path / "whole" / "circuit-1-0" / "circuit.json")
    gate, numbers, _ = learn_circuit.read_numbers(
        tmp_path / "whole" / "circuit-1-0" / "numbers.json"
    )
    np.testing.assert_allclose(
        shipped.coefficients, gate.build(numbers).coefficients, rtol=0, atol=1e-6
    )
    with pytest.raises(SystemExit):
        learn_circuit.main(f"--gate circuit-1 --population 7 --output {tmp_path / 'whole'}".split())
    assert "holds a run of other settings" in capsys.readouterr().err


def test_evolution_ranks_candidates_at_their_best_learning_rates(monkeypatch, tmp_path):
    asked = []

    class Valley:
        def __init__(self, *_):
            pass

        def __call__(self, candidates, episodes):
            asked.append(candidates)
            return np.abs(candidates[:, :1] - np.log2([e.learning_rate for e in episodes]))

    monkeypatch.setattr(learning, "Objective", Valley)
    gate = gates.circuit(1)
    given = learning.Assignment(
        gate, [_valley()] * 3, 6, 2, 0, gate.start(0), 2.0, tmp_path / "rates.json"
    )
    line = learning.Evolution(given).generation(0)
    assert len(asked) == 6  # episodes
    expected = [min(abs(x[0] + 2), abs(x[0] + 1), abs(x[0]), abs(x[0] - 1)) for x in asked[0]]
    np.testing.assert_allclose(line["score"], np.mean(expected), rtol=1e-6)
    np.testing.assert_allclose(line["best"], np.min(expected), rtol=1e-6)


def test_learning_starts_where_another_run_has_ended(valley, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    numbers = gates.circuit(1).start(3)
    file.write_text(
        json.dumps({"settings": {"gate": "circuit-1"}, "numbers": [float(x) for x in numbers]})
    )
    for method in learning.METHODS.values():
        given = learning.Assignment(
            gates.circuit(1), [valley], 6, 1, 0, numbers, 0.1, tmp_path / "rates.json"
        )
        np.testing.assert_array_equal(method(given).numbers, numbers)
    with pytest.raises(SystemExit):
        learn_circuit.main(f"--gate multilinear --start {file} --output {tmp_path}".split())
    assert "numbers.json: is of circuit-1, not of multilinear" in capsys.readouterr().err


@pytest.mark.slow
def test_evolution_finds_a_better_step_than_adamws(valley, tmp_path):
    given = learning.Assignment(
        gates.circuit(1),
        [valley],
        12,
        1,
        0,
        gates.circuit(1).start(0),
        0.3,
        tmp_path / "rates.json",
    )
    learner = learning.Evolution(given)
    first = np.mean([learner.generation(i)["score"] for i in range(3)])
    for i in range(3, 27):
        learner.generation(i)
    last = np.mean([learner.generation(i)["score"] for i in range(27, 30)])
    assert last < first - 0.1


@pytest.mark.parametrize(
    "content", ["{}", '{"settings": {"gate": "circuit-1"}, "numbers": [1]}', "["]
)
def test_files_that_hold_no_numbers_are_refused(tmp_path, content):
    file = tmp_path / "numbers.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"numbers\.json: "):
        learn_circuit.read_numbers(file)


def test_the_picture_shows_the_step_that_is_taken():
    gates_of = qsgd.SignalSuperposition(qsgd.Circuit(4, 2, seed=1), (0.5, 0.3), 1.1)
    u, g, theta = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)
    theta /= np.sqrt(np.mean(theta**2))  # so that the step's own division changes nothing
    step = gates_of.gated(jnp.asarray(u), jnp.asarray(g), jnp.asarray(theta))
    np.testing.assert_allclose(learned_gate.gated(gates_of, u, g, theta), step, atol=1e-6)


def test_a_wire_that_nothing_reads_moves_nothing(tmp_path):
    # At depth 0 the two readouts see the last two signals, and λ₂ = 0 silences one of them.
    gates_of = qsgd.SignalSuperposition(qsgd.Circuit(4), (0.5, 0.0))
    found = learned_gate.sensitivities(gates_of)
    assert found["agreement"] > 0.05
    assert found["update"] == found["gradient"] == found["parameter"] == 0


def test_ablated_circuits_lack_what_was_taken_away():
    source = qsgd.SignalSuperposition(qsgd.Circuit(4, 2, seed=1), (0.5, 0.3), 1.1)
    u, g, theta = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)
    found = {name: one.readouts(u, g, theta) for name, one in ablations.ablations(source).items()}
    np.testing.assert_allclose(found["parameter muted"], source.readouts(u, g, 0 * theta))
    run = source.circuit.qnode("default.qubit")
    half_turns = np.stack([np.arctan(x) for x in (u, g, theta, 0 * u)], -1) / np.pi
    both = (np.array(run(half_turns)) + np.array(run(half_turns * [-1, -1, -1, 1]))) / 2
    np.testing.assert_allclose(found["agreement muted"], both[:1:-1], atol=2e-6)
    whole = ablations.WithoutChains(4, 2, weights=source.circuit.angles)
    np.testing.assert_allclose(
        qsgd.SignalSuperposition(whole).coefficients, source.coefficients, atol=1e-12
    )
    alone = ablations.WithoutChains(4, 2, weights=source.circuit.angles, unchained=(0, 1))
    single = alone.qnode("default.qubit")
    for j, wire_angles in enumerate(source.circuit.angles.transpose(1, 0, 2)):
        one = qsgd.Circuit(1, 2, weights=wire_angles[:, None]).qnode("default.qubit")
        expected = np.ravel(one(half_turns[:, j : j + 1]))
        np.testing.assert_allclose(single(half_turns)[j], expected, atol=1e-9)


def test_a_single_chain_is_taken_away_once():
    shipped = ablations.ablations(qsgd.load_superposition())
    assert [name for name in shipped if "muted" not in name] == ["as it is", "no entanglement"]
    assert len(shipped) == 2 + len(qsgd.SignalSuperposition.signals)


@pytest.mark.slow
def test_a_probe_by_many_shots_scores_as_the_exact_one(monkeypatch, tmp_path):
    task = _valley()
    monkeypatch.setattr("benchmarks.workloads.synthetic.VALIDATION", (task,))
    monkeypatch.setattr(objective, "HORIZONS", (48,))
    file = pathlib.Path(qsgd.__file__).parent / "circuits" / "adamw-3.json"
    learned_gate.main(
        f"--ablations --noise --shots 100 1000000 --seeds 2 --output {tmp_path} "
        f"--devices default.qubit --circuit {file}".split()
    )
    content = json.loads((tmp_path / "learned_gate.json").read_text())
    exact, few, many, other = (row["valley"] for row in content["noise"].values())
    assert abs(many - exact) < abs(few - exact) and other != exact
    whole, *without = (row["valley"] for row in content["ablations"].values())
    assert whole == exact and len(without) == 7 and exact not in without
    assert (tmp_path / "learned_gate.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_cost_is_told_of_the_optimizer_and_of_a_training_step(tmp_path):
    learned_cost.main(f"--millions 0.02 --rounds 6 --output {tmp_path}".split())
    content = json.loads((tmp_path / "learned_cost.json").read_text())
    for part in ("optimizer", "training_step"):
        rows = content[part]
        assert list(rows) == list(learned_cost.optimizers())
        assert rows["adamw"]["ratio"] == 1
        assert all(row["milliseconds"] > 0 and row["rounds"] == 6 for row in rows.values())
