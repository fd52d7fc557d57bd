"""What is weighed, by which circuit and where: from parameters to superposition weights."""

import dataclasses
import functools
import math
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from qsgd_jax._src import compiled, devices, fourier
from qsgd_jax._src import coverage as coverages
from qsgd_jax._src.checks import shots_for
from qsgd_jax._src.circuit import Circuit, Readout
from qsgd_jax._src.perturbation import (
    Part,
    added,
    from_real_parts,
    parts_of,
    perturbed,
    scaled,
    weighed,
)
from qsgd_jax._src.sampling import key_data, leaf_key, mean_of_shots, step_key

# 65,536 tapes are about 4 seconds on lightning.qubit and 1 GB of host memory; 2²²
# coefficients are 32 MiB of constants in every compiled step.
_MAX_SETTINGS = 2**16
_MAX_COEFFICIENTS = 2**22
_EXECUTIONS = ("auto", "fourier", "direct")
_NOISELESS = ("default.qubit", "lightning.qubit", "lightning.kokkos", "lightning.gpu")


@dataclasses.dataclass(frozen=True, eq=False)
class Superposition:
    r"""How parameters become superposition weights.

    .. math:: w_j(\theta) = \langle Z_j \rangle_{\theta_1 \dots \theta_n} \in [-1, 1]

    Coordinates of each tensor are grouped into blocks of `circuit.n_qubits`, and the
    circuit answers a weight for each coordinate of a block. Everything in it is static:
    `optax.inject_hyperparams` leaves it alone.

    Args:
      circuit: the circuit that weighs a block.
      coverage: `"leading"`, the first `n_qubits` row-major coordinates of each tensor as
        one block (the paper), or `"everywhere"`, all coordinates, in blocks of adjacent
        rows (the last axis but one; the only axis of a vector).
      device: a PennyLane device name or instance.
      execution: `"fourier"` probes the circuit once, on a grid of `(2 uploads + 1)^n_qubits`
        settings, and evaluates the polynomial that it is; `"direct"` runs the circuit at
        every block in every step; `"auto"` is `"fourier"` where the grid is small enough.
      shots: `None` for exact expectations; `k` for the mean of k joint measurements of
        all qubits, fresh in each step and block, drawn from exact probabilities.
      probe_shots: `None` for the device's exact answers (or as many shots as it brings);
        S for a device that measures each setting S times. The estimated weights are unbiased
        with variance `Σ_g K_g(θ)² (1 − f(θ_g)²) / S ≤ 1 / S` over the settings g of the probe,
        where `K_g = Π_j (1 + 2 Σ_r cos rπ(θ_j − θ_gj)) / (2 uploads + 1)`. The error is that of
        the probe: the same in every step. In direct execution each step and block is measured
        anew.
      target_standard_error: σ, instead of `probe_shots`: `S = ⌈1/σ²⌉` shots, with which no
        weight's standard error is greater.
      refreshable: whether the coefficients are kept in the optimizer's state, where a
        `RemoteProber` replaces them between steps; they start as those of `device`. All of them
        may be nonzero then, so that a step costs what a circuit with all interactions does.
      compiler: `None`, or `"catalyst"`: PennyLane's Catalyst, the extra of that name, compiles
        the probe on lightning.qubit to one program. The weights are the same.

    Raises:
      ImportError: if the compiler is not installed.
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is not among the allowed values, the device is not
        installed or too small, or the Fourier grid is too large.

    Example:
      >>> import qsgd_jax as qsgd
      >>> circuit = qsgd.Circuit(n_qubits=4, depth=2)
      >>> superposition = qsgd.Superposition(circuit, coverage="everywhere", shots=16)

    References:
      Eq. 2 of Pamuk, Özdemir, Kocabay, arXiv:2511.01918; Schuld, Sweke, Meyer,
      arXiv:2008.08605.
    """

    circuit: Circuit = dataclasses.field(default_factory=Circuit)
    coverage: coverages.Coverage = "leading"
    device: Any = "lightning.qubit"
    execution: str = "auto"
    shots: int | None = None
    probe_shots: int | None = None
    target_standard_error: float | None = None
    refreshable: bool = False
    compiler: str | None = None

    def __post_init__(self):
        if not isinstance(self.circuit, Circuit):
            raise TypeError(f"circuit={self.circuit!r} must be a qsgd_jax.Circuit.")
        for name, allowed in (
            ("coverage", get_args(coverages.Coverage)),
            ("execution", _EXECUTIONS),
            ("compiler", (None, "catalyst")),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}."
                )
        for name in ("shots", "probe_shots"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{name}={value!r} must be None or an integer of at least 1.")
            if value < 1:
                raise ValueError(f"{name}={value} must be None or at least 1.")
        self._check_target()
        self._check_refreshable()
        if self.execution == "fourier" and not self._grid_fits:
            raise ValueError(
                f"execution='fourier' needs {self._n_settings} probe settings of "
                f"{self.circuit.n_outputs(self.readout)} outputs for n_qubits="
                f"{self.circuit.n_qubits}, uploads={self.circuit.uploads}; allowed are at most "
                f"{_MAX_SETTINGS} settings and {_MAX_COEFFICIENTS} values. "
                "execution='direct' serves such a circuit."
            )
        # Opening the device now makes a wrong one fail here. Traced angles are probed now
        # as well: a probe first needed inside `lax.scan` would leak that loop's tracers.
        _ = self._device
        if self.compiler is not None:
            _ = self._compiled_probe
        measured = self.measurements
        if measured is not None and self.shots is not None:
            raise ValueError(
                f"shots={self.shots} are drawn from exact probabilities; {self._device.name!r} "
                f"estimates them by {measured} measurements: allowed is shots=None."
            )
        if measured is None and devices.measures_only(self._device):
            raise ValueError(
                f"probe_shots=None: {self._device.name!r} can only measure; probe_shots or "
                "target_standard_error must say how often."
            )
        if measured is not None and self.circuit.traced:
            raise ValueError(
                f"{self._device.name!r} answers by {measured} measurements, which have no "
                "derivative; allowed are circuits of concrete weights."
            )
        if self.circuit.traced and self._fourier:
            _ = self.coefficients

    def _check_target(self):
        sigma = self.target_standard_error
        if sigma is None:
            return
        if self.probe_shots is not None:
            raise ValueError(
                f"probe_shots={self.probe_shots} and target_standard_error={sigma}: "
                "one of them must be None."
            )
        shots_for(sigma, 1.0)

    def _check_refreshable(self):
        if not isinstance(self.refreshable, (bool, np.bool_)):
            raise TypeError(f"refreshable={self.refreshable!r} must be True or False.")
        if not self.refreshable:
            return
        reason = None
        if self.shots is not None:
            reason = f"shots={self.shots} are drawn from exact probabilities"
        elif not self._fourier:
            reason = f"execution={self.execution!r} has no coefficients for this circuit"
        elif self.circuit.traced:
            reason = "the coefficients of traced circuit weights belong to their trace"
        if reason is not None:
            raise ValueError(f"refreshable=True: {reason}; allowed is refreshable=False.")

    @property
    def measurements(self) -> int | None:
        """How often the device measures each setting it is given; `None` if it answers exactly."""
        if self.target_standard_error is not None:
            return shots_for(self.target_standard_error, 1.0)
        return self.probe_shots or self._device.shots.total_shots

    @functools.cached_property
    def _device(self):
        return devices.open_device(self.device, self.circuit.n_qubits)

    @functools.cached_property
    def _compiled_probe(self):
        if not self._fourier:
            raise ValueError(
                f"execution={self.execution!r} runs this circuit in every step; "
                f"compiler={self.compiler!r} compiles the probe of the Fourier form. Allowed is "
                f"compiler=None, or 'fourier' with at most {_MAX_SETTINGS} settings."
            )
        return compiled.program(self.circuit, self.device, self.readout, self.measurements)

    @property
    def readout(self) -> Readout:
        """What the circuit is asked for; joint samples need joint probabilities."""
        return "expectation" if self.shots is None else "probabilities"

    @property
    def _n_settings(self) -> int:
        return fourier.n_settings(self.circuit.n_qubits, self.circuit.uploads)

    @property
    def _grid_fits(self) -> bool:
        values = self._n_settings * self.circuit.n_outputs(self.readout)
        return self._n_settings <= _MAX_SETTINGS and values <= _MAX_COEFFICIENTS

    @property
    def _fourier(self) -> bool:
        return self.execution != "direct" and self._grid_fits

    @functools.cached_property
    def coefficients(self):
        """The Fourier coefficients about the circuit's origin, `(outputs, 2 uploads + 1, …)`.

        They are probed once.

        Returns:
          A float64 NumPy array, or a JAX array where the circuit's angles are traced.
        """
        n, degree = self.circuit.n_qubits, self.circuit.uploads
        grid = self.circuit.origin + fourier.probe_grid(n, degree)
        if self.compiler is None:
            values = devices.run(self.circuit, self._device, grid, self.readout, self.measurements)
        else:
            values = self._compiled_probe(np.asarray(grid))
        if isinstance(values, np.ndarray) and not np.isfinite(values).all():
            raise ValueError(f"device={self._device.name!r} answered with values not finite.")
        return fourier.coefficients(values, n, degree)

    @property
    def support(self) -> Bool[np.ndarray, "outputs ..."] | None:
        """Which coefficients can be other than zero, where the angles are traced.

        `None` where that is not known: a noisy device may answer with all of them, and so may a
        circuit of other gates.
        """
        circuit = self.circuit
        known = type(circuit) is Circuit and self._device.name in _NOISELESS
        if not circuit.traced or not known:
            return None
        return _support(circuit.n_qubits, circuit.depth, circuit.uploads, self.readout)

    def weights(
        self,
        params: PyTree[Array],
        key: Array | None = None,
        coefficients: Array | None = None,
    ) -> PyTree[Array]:
        r"""The weight of every coordinate; see `superposition_weights`.

        .. math:: w_j(\theta) = \langle Z_j \rangle_{\theta_1 \dots \theta_n}

        Args:
          params: arrays of any shape and dtype.
          key: the step's typed random key; needed with `shots` only.
          coefficients: those to use instead of the device's, if `refreshable`.

        Returns:
          For each leaf an array of its shape, float32 (float64 for double precision);
          complex for complex leaves, whose two parts are weighed as two real leaves;
          zeros for leaves that are not inexact numbers.

        Raises:
          ValueError: if `key` is missing and `shots` are asked for, or `coefficients` are given
            to what is not refreshable.

        Example:
          >>> import jax.numpy as jnp, qsgd_jax as qsgd
          >>> print(qsgd.Superposition().weights(jnp.array([0.5, -0.5])))
          [ 1. -1.]
        """
        paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        leaves = [leaf for _, leaf in paths_and_leaves]
        parts = [parts_of(path, leaf, self._leaf_key(key, path)) for path, leaf in paths_and_leaves]
        answers = self._weigh_all(parts, None, self._checked(coefficients))
        return treedef.unflatten(map(from_real_parts, answers, map(jnp.shape, leaves)))

    def perturb(
        self,
        updates: PyTree,
        gradients: PyTree | None,
        params: PyTree,
        quantum_weight: Array | float,
        key: Array | None = None,
        coefficients: Array | None = None,
    ) -> PyTree:
        r"""Add the perturbation of Eq. 2, the gradients times their weights, to updates.

        .. math:: u + \lambda \, w(\theta) \odot \nabla L

        Args:
          updates: u, arrays of any dtype, or `None`.
          gradients: ∇L, arrays of the same shapes, `None` where there is no gradient; instead
            of all, `None` stands for the updates themselves, which become u (1 + λ w(θ)).
          params: θ, arrays of the same shapes.
          quantum_weight: λ, a scalar.
          key: the step's typed random key; needed with `shots` only.
          coefficients: those to use instead of the device's, if `refreshable`.

        Returns:
          Updates of the dtypes given; those without a gradient, or of a parameter that is
          not an inexact number, unchanged.

        Raises:
          ValueError: if the trees differ in structure, a leaf in shape, or only one of an
            update, its gradient and its parameter is complex, `key` is missing and `shots` are
            asked for, or `coefficients` are given to what is not refreshable.

        Example:
          >>> import jax.numpy as jnp, qsgd_jax as qsgd
          >>> params, gradients = jnp.array([0.5, -0.5]), jnp.array([2.0, 3.0])
          >>> print(qsgd.Superposition().perturb(jnp.zeros(2), gradients, params, 0.1))
          [ 0.2 -0.3]
        """
        paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        flat = [_flatten_like(treedef, "updates", updates)]
        if gradients is not None:
            flat.append(_flatten_like(treedef, "gradients", gradients))
        parts = [
            parts_of(path, leaf, self._leaf_key(key, path), *others)
            for (path, leaf), *others in zip(paths_and_leaves, *flat, strict=True)
        ]
        strength = jnp.asarray(quantum_weight)
        answers = self._weigh_all(parts, strength, self._checked(coefficients))
        return treedef.unflatten(
            [
                from_real_parts(answer, jnp.shape(update)) if answer else update
                for answer, update in zip(answers, flat[0], strict=True)
            ]
        )

    def _leaf_key(self, key: Array | None, path: tuple) -> Any:
        if self.shots is None:
            return None
        if key is None:
            raise ValueError(f"key=None must be a random key, for shots={self.shots}.")
        return leaf_key(key, path)

    def _checked(self, coefficients: Array | None) -> Array | None:
        if coefficients is None:
            return None
        if not self.refreshable:
            raise ValueError("coefficients are given, but allowed only with refreshable=True.")
        if jnp.shape(coefficients) != self.coefficients.shape:
            raise ValueError(
                f"coefficients of shape {jnp.shape(coefficients)} must have that of this circuit, "
                f"{self.coefficients.shape}."
            )
        return jnp.asarray(coefficients)

    def _weigh_all(
        self, leaves: list[list[Part]], strength: Array | None, table: Array | None
    ) -> list[list[Array]]:
        """The answers for the parts of each leaf, for parts that go together at once."""
        groups: dict[Any, list[tuple[int, int]]] = {}
        for i, parts in enumerate(leaves):
            for k, part in enumerate(parts):
                sharding = jax.typeof(part.theta).sharding
                mesh = sharding.mesh if sharding.mesh.explicit_axes else None
                groups.setdefault((part.theta.dtype, mesh), []).append((i, k))
        results: list[list[Any]] = [[None] * len(parts) for parts in leaves]
        for (_, mesh), places in groups.items():
            parts, weigh = [leaves[i][k] for i, k in places], self._weigh
            if mesh is not None:
                # There every slice would need a sharding of its own; XLA knows better.
                shardings = [jax.typeof(part.theta).sharding for part in parts]
                weigh = cast(Any, jax.sharding.auto_axes(weigh, out_sharding=shardings))
            for (i, k), answer in zip(places, weigh(parts, strength, table), strict=True):
                results[i][k] = answer
        return results

    def _weigh(self, parts: list[Part], strength: Array | None, table: Array | None) -> list[Array]:
        """The weights, or the updates perturbed by them, of real leaves of one dtype."""
        together = self.coverage == "leading" and self.refreshable
        if self._fourier and self.shots is None and not together:
            return [
                self._weigh_leaf(part.theta, part.update, part.gradient, strength, table)
                for part in parts
            ]
        n = self.circuit.n_qubits
        if self.coverage == "everywhere":
            answers = self._outputs([coverages.blocks(part.theta, n) for part in parts], table)
            if self.shots is not None:
                answers = [
                    self._sample(answer, part.key, coverages.block_numbers(part.theta.shape, n))
                    for answer, part in zip(answers, parts, strict=True)
                ]
            weights = [
                coverages.from_blocks(answer, part.theta.shape)
                for answer, part in zip(answers, parts, strict=True)
            ]
            return [
                perturbed(part.update, strength, w, part.gradient)
                for w, part in zip(weights, parts, strict=True)
            ]
        # One block a leaf: all leaves together are one small batch.
        joined = jnp.stack([coverages.leading_block(part.theta, n) for part in parts])
        (columns,) = self._outputs([list(joined.T)], table)
        if self.shots is not None:
            keys = jnp.stack([part.key for part in parts])
            columns = jax.vmap(self._sample, (0, 0, None))(columns, keys, jnp.int32(0))
        rows = jnp.stack(columns, axis=-1)
        return [
            self._perturbed_at_the_head(row, part.theta.shape, part.update, part.gradient, strength)
            for row, part in zip(rows, parts, strict=True)
        ]

    @functools.cached_property
    def _weigh_leaf(self):
        """The answer of `_weigh` by the Fourier form without shots, for one leaf.

        Traced once for each shape. Nothing in it depends on the leaf's place among the
        others, so that leaves of one shape share XLA's compiled kernels.
        """

        def weigh(
            theta: Array,
            update: Array | None,
            gradient: Array | None,
            strength: Array | None,
            given: Array | None,
        ) -> Array:
            n, table = self.circuit.n_qubits, self.coefficients if given is None else given
            moved = self.circuit.traced or self.circuit.origin.any()
            line = None if moved else fourier.elementwise(table)
            if self.coverage == "leading":
                block = coverages.corner_blocks(theta, n)
                weights = (
                    jnp.stack(self._evaluate(list(jnp.moveaxis(block, -1, 0)), table), -1)
                    if line is None
                    else fourier.evaluate(line, [block])[0]
                )
                # A sum of one term: XLA fuses no reduction into a larger loop. It would else
                # read the block where it overwrites the donated leaf, and copy the leaf first.
                one = jnp.eye(n, dtype=bool)
                weights = jnp.sum(jnp.where(one, weights[..., None, :], 0), axis=-1)
                return self._perturbed_at_the_head(weights, theta.shape, update, gradient, strength)
            if line is not None:
                weights = fourier.evaluate(line, [theta])[0]
                return perturbed(update, strength, weights, gradient)
            # The weights of coordinates that a leaf of fewer rows lacks would be dropped.
            outputs = self._evaluate(coverages.blocks(theta, n), table)
            outputs = outputs[: coverages.n_filled(theta.shape, n)]
            # What they act on goes into their loop. From parameters alone XLA would compute all
            # weights before the gradients, and keep them in memory.
            if gradient is not None:
                columns = coverages.blocks(gradient, n, borrow=False)
                outputs = [weighed(w, g) for w, g in zip(outputs, columns, strict=False)]
            elif update is not None:
                columns = coverages.blocks(update, n, borrow=False)
                outputs = [scaled(u, strength, w) for w, u in zip(outputs, columns, strict=False)]
            joined = coverages.from_blocks(fourier.in_one_loop(outputs), theta.shape)
            return joined if gradient is None else added(update, strength, joined)

        # A function that closes over traced coefficients must not outlive their trace.
        return weigh if self.circuit.traced else jax.jit(weigh)

    def _evaluate(self, thetas: list[Array], table: Any) -> list[Array]:
        """The circuit's answers by the Fourier form, for `n` arrays of one shape."""
        return fourier.evaluate(table, thetas, self.circuit.origin, self.support)

    def _perturbed_at_the_head(self, weights, shape, update, gradient, strength) -> Array:
        """`perturbed` by a leading block's weights, at its places in the leaf.

        The gradients are read at the block alone: XLA would read every one of them to multiply
        most by zero, which is a tenth of AdamW's memory traffic.
        """
        if gradient is None:
            weights = coverages.from_leading_block(weights, shape)
            return perturbed(update, strength, weights, None)
        head = weighed(weights, coverages.corner_blocks(gradient, self.circuit.n_qubits))
        return added(update, strength, coverages.from_leading_block(head, shape))

    def _outputs(self, block_sets: list[list[Array]], table: Array | None) -> list[list[Array]]:
        """The circuit's exact answers for sets of blocks, each `n` arrays of one shape."""
        if self._fourier:
            return [
                fourier.in_one_loop(
                    self._evaluate(thetas, self.coefficients if table is None else table)
                )
                for thetas in block_sets
            ]
        shapes = [thetas[0].shape for thetas in block_sets]
        batch = jnp.concatenate(
            [jnp.stack([theta.ravel() for theta in thetas], -1) for thetas in block_sets]
        )
        # Else −πθ, which the device is given, would be rounded before the period is taken off.
        batch = fourier.within_period(batch)
        answers = jnp.asarray(
            devices.run(self.circuit, self._device, batch, self.readout, self.measurements),
            batch.dtype,
        )
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        return [
            [column.reshape(shape) for column in split.T]
            for split, shape in zip(jnp.split(answers, ends), shapes, strict=True)
        ]

    def _sample(self, probabilities: list[Array], key: Array, numbers: Array) -> list[Array]:
        sample = mean_of_shots(self.circuit.n_qubits, cast(int, self.shots))
        return sample(probabilities, key, numbers)


def superposition_weights(
    superposition: Superposition,
    params: PyTree[Array],
    *,
    key: Array | int = 0,
    coefficients: Array | None = None,
) -> PyTree[Array]:
    r"""What the circuit says about parameters: the weight of every coordinate.

    .. math:: w_j(\theta) = \langle Z_j \rangle_{\theta_1 \dots \theta_n}

    Args:
      superposition: circuit, coverage and device.
      params: arrays of any shape and dtype.
      key: a seed or a random key; used with `shots` only. The transforms draw the same
        sample in their first step from the same key.
      coefficients: those to use instead of the device's, if `refreshable`: a state's
        `optax.tree.get(opt_state, "table")`.

    Returns:
      For each leaf an array of its shape with values in [−1, 1], zero where no weight
      acts; float32, or float64 for double precision. A complex leaf is weighed as two
      real ones and gets a complex array.

    Raises:
      TypeError: if `superposition` is not a `Superposition`, or `key` is neither a
        seed nor a threefry key.
      ValueError: if `coefficients` do not fit, or are given to what is not refreshable.

    Example:
      >>> import jax.numpy as jnp, qsgd_jax as qsgd
      >>> params = {"bias": jnp.array([0.5, -0.5, 0.0, 1.0, 0.5])}
      >>> print(qsgd.superposition_weights(qsgd.Superposition(), params)["bias"])
      [ 1. -1.  0.  0.  0.]

    References:
      Eq. 2 of Pamuk, Özdemir, Kocabay, arXiv:2511.01918.
    """
    if not isinstance(superposition, Superposition):
        raise TypeError(f"superposition={superposition!r} must be a qsgd_jax.Superposition.")
    return superposition.weights(params, step_key(key_data(key), 0), coefficients)


@functools.cache
def _support(n_qubits: int, depth: int, uploads: int, readout: Readout) -> np.ndarray:
    """Which coefficients the circuit has at angles of no special value."""
    found = np.zeros(())
    for seed in (1, 2):
        circuit = Circuit(n_qubits, depth, uploads, seed=seed)
        grid = circuit.origin + fourier.probe_grid(n_qubits, uploads)
        simulator = devices.open_device("lightning.qubit", n_qubits)
        values = devices.run(circuit, simulator, grid, readout, None)
        found = found + np.abs(fourier.coefficients(values, n_qubits, uploads))
    return found > 1e-12


def _flatten_like(treedef: Any, name: str, tree: PyTree) -> list[Any]:
    try:
        return treedef.flatten_up_to(tree)
    except ValueError as error:
        raise ValueError(
            f"{name} of structure {jax.tree.structure(tree)} must have that of params, {treedef}."
        ) from error
