"""NFTKMLP: the multilayer perceptron whose every hidden layer has its own readout."""

import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nftk._checks import check_choice, check_integer, check_number
from nftk._dispatch import check_backend
from nftk.constraints import base as constraints
from nftk.modules.hidden_layer import HiddenLinear, plain_parameters
from nftk.modules.pruned_mlp import PrunedMLP
from nftk.ops import activations
from nftk.ops import precision as precisions
from nftk.ops.network import SUPPORTED, run
from nftk.ops.network_formula import Plan
from nftk.ops.readout import readout

_OP = "NFTKMLP"
Phi = str | Callable[[Tensor], Tensor]
Parameterization = Literal["standard", "ntk"]


class NFTKMLP(nn.Module):
    r"""Multilayer perceptron with a readout on every hidden layer, weighted per class by a non-negative Omega.

    .. math::
        g_l = W_l h_{l-1} + b_l, \quad h_l = \phi(g_l), \quad h_0 = x, \qquad
        f(x) = \sum_l \omega_l \odot V_l h_l(x)

    Trained, ``omega[i, l]`` weighs what layer l + 1 says about class i; :func:`nftk.importance` says how far that tells
    which layers decide which class (docs/errata.md, 6). A drop-in for a multilayer perceptron: sizes, widths,
    outputs, and leading dimensions as in ``nn.Linear``.

    In the "ntk" parameterisation :math:`g_l = \sqrt{s_w^2 / n_{l-1}} W_l h_{l-1} + \sqrt{s_b^2} b_l` and
    :math:`f_l = \sqrt{s_v^2 / n_l} V_l h_l`, with all parameters drawn from N(0, 1).

    Args:
        in_features: m, size of an input.
        hidden_features: n_1 .. n_L, the width of each hidden layer; they may differ. L is at least 1.
        out_features: d, number of outputs.
        activation: phi: relu, leaky_relu, gelu, silu, tanh, erf, elu, sin, identity, or any callable on tensors
            (an ``nn.Module`` is registered); or a sequence of L of these.
        bias: Whether the hidden layers have biases. In the "ntk" parameterisation a layer with ``bias_var = 0``
            has none.
        output_bias: Whether a bias c (d,) is added to f. It belongs to no layer.
        parameterization: ``"standard"``: W and V from Xavier's normal distribution, biases zero; or ``"ntk"``.
        omega_init: Start of Omega: None for 1/L everywhere, a number, or a ``(d, L)`` tensor.
        constraint: What :meth:`project_` projects Omega onto: ``"nonnegative"``, ``"simplex"``, ``"l1ball"``,
            ``"groupsparse"``, an object of ``nftk.constraints`` (or any with ``project_(omega)``), or None.
        backend: ``"auto"``, ``"triton"`` or ``"torch"``; see :func:`nftk.ops.network`, which also has the rule for
            the path taken. "triton" serves the readouts alone while a dropout is active, or a hook on a layer.
        precision: Of float32 products on a GPU: ``"highest"``, ``"tf32"`` or ``"bf16"``, as there.
        dropout: Probability with which entries of each h_l are zeroed in training mode: a number, or one a layer.
        weight_var: s_w^2 of the "ntk" parameterisation, a number or one a layer.
        bias_var: s_b^2, likewise.
        readout_var: s_v^2, likewise.
        device: Where the parameters live.
        dtype: Their dtype.

    Attributes:
        hidden: ModuleList of the L hidden layers; ``hidden[l].weight`` is W_{l+1}, shape ``(n_{l+1}, n_l)``.
        readout_weight: All V_l side by side, a Parameter ``(d, n_1 + ... + n_L)``; :meth:`readout_weights` takes
            them apart.
        omega: Parameter ``(d, L)``.
        output_bias: Parameter ``(d,)`` or None.

    Shape:
        Input ``(..., m)``, output ``(..., d)``.

    Raises:
        ValueError: If a size is below 1, a name unknown, or a sequence not of length L.
        TypeError: If a size is no integer, or the activation neither a name nor callable.
        NotImplementedError: If ``backend`` has no code for any network; of what a backend lacks for this one, the
            first forward pass says.

    References:
        Alemohammad et al., NFT-K: Non-Fungible Tangent Kernels, ICASSP 2022, arXiv 2110.04945, equations 1-3, 7, 8.

    Example:
        >>> import torch, nftk
        >>> model = nftk.NFTKMLP(784, [256] * 10, 10)
        >>> model(torch.zeros(50, 784)).shape
        torch.Size([50, 10])
        >>> model.omega.shape
        torch.Size([10, 10])
    """

    # of a network that was pickled before there was a choice
    precision = "highest"

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        *,
        activation: Phi | Sequence[Phi] = "relu",
        bias: bool = True,
        output_bias: bool = False,
        parameterization: Parameterization = "standard",
        omega_init: float | Tensor | None = None,
        constraint: "str | constraints.Projection | None" = "nonnegative",
        backend: str = "auto",
        precision: str = "highest",
        dropout: float | Sequence[float] = 0.0,
        weight_var: float | Sequence[float] = 2.0,
        bias_var: float | Sequence[float] = 0.0,
        readout_var: float | Sequence[float] = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_integer(_OP, "in_features", in_features, 1)
        if isinstance(hidden_features, Integral | str) or len(hidden_features) == 0:
            raise ValueError(
                f"nftk.{_OP}: hidden_features must list a width a layer, as [256, 256], got {hidden_features!r}"
            )
        widths = [check_integer(_OP, "every width in hidden_features", width, 1) for width in hidden_features]
        self.hidden_features = tuple(widths)
        self.out_features = check_integer(_OP, "out_features", out_features, 1)
        check_choice(_OP, "parameterization", parameterization, get_args(Parameterization))
        self.parameterization = parameterization
        check_backend(_OP, backend, SUPPORTED)
        self.backend = backend
        self.precision = precisions.canonical(_OP, precision)
        self.constraint = constraints.resolve(constraint)
        self.weight_var = self._per_layer("weight_var", weight_var, above=True)
        self.bias_var = self._per_layer("bias_var", bias_var)
        self.readout_var = self._per_layer("readout_var", readout_var, above=True)
        if parameterization == "standard" and (weight_var, bias_var, readout_var) != (2.0, 0.0, 1.0):
            raise ValueError(f"nftk.{_OP}: weight_var, bias_var and readout_var must go with parameterization='ntk'")
        self.dropout = self._per_layer("dropout", dropout)
        if max(self.dropout) >= 1:
            raise ValueError(f"nftk.{_OP}: dropout must be below 1, got {max(self.dropout):g}")
        self.omega_init = omega_init
        self._plan = self._make_plan(activation)
        modules = [phi.function for phi in self._plan.activations if isinstance(phi.function, nn.Module)]
        if modules:
            # registered, so that their parameters move and train with the network
            self.activation_modules = nn.ModuleList(dict.fromkeys(modules))

        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.hidden = nn.ModuleList(
            HiddenLinear(n_in, n_out, bias and c > 0, weight_scale=a, bias_scale=c, **kind)
            for n_in, n_out, a, c in zip(
                (self.in_features, *widths[:-1]),
                widths,
                self._plan.weight_scales,
                self._plan.bias_scales,
                strict=True,
            )
        )
        self.readout_weight = nn.Parameter(torch.empty(self.out_features, sum(widths), **kind))
        self.omega = nn.Parameter(torch.empty(self.out_features, len(widths), **kind))
        self.output_bias = nn.Parameter(torch.empty(self.out_features, **kind)) if output_bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew from torch's global generator, and set Omega to its start.

        Raises:
            ValueError: If ``omega_init`` is a tensor of another shape than ``(d, L)``, or not finite.
        """
        if not self.omega.is_meta:
            # where there is nothing to draw torch would take seconds over it, to load its compiler
            self._draw()
        start = 1.0 / len(self.hidden) if self.omega_init is None else self.omega_init
        if isinstance(start, Tensor) and start.shape != self.omega.shape:
            want, got = list(self.omega.shape), list(start.shape)
            raise ValueError(f"nftk.{_OP}: omega_init must be a number or have shape {want}, got {got}")
        if not isinstance(start, Tensor):
            start = check_number(_OP, "omega_init", start, -math.inf)
        values = torch.as_tensor(start, dtype=self.omega.dtype)
        if not values.isfinite().all():
            raise ValueError(f"nftk.{_OP}: omega_init must be finite, got {self.omega_init}")
        self.omega.copy_(values.expand_as(self.omega))

    def _draw(self) -> None:
        ntk = self.parameterization == "ntk"
        for layer in self._layers():
            nn.init.normal_(layer.weight) if ntk else nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias) if ntk else nn.init.zeros_(layer.bias)
        for v in self.readout_weights():
            nn.init.normal_(v) if ntk else nn.init.xavier_normal_(v)
        if self.output_bias is not None:
            nn.init.normal_(self.output_bias) if ntk else nn.init.zeros_(self.output_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x).

        Args:
            x: Inputs, shape ``(..., m)``.

        Returns:
            f, shape ``(..., d)``.

        Raises:
            ValueError: If the last dimension of ``x`` is not m.
        """
        dropping = self.training and max(self.dropout) > 0
        layers = None if dropping else plain_parameters(self.hidden)
        if layers is not None:
            self._check_input(x)
            everything = (*layers, self.readout_weight, self.omega, self.output_bias)
            return run(self._plan, self.precision, self.backend, x, *everything)
        f = readout(
            self.hidden_states(x),
            self.readout_weight,
            self.omega,
            readout_scales=self._plan.readout_scales,
            precision=self.precision,
            backend=self.backend,
        )
        assert isinstance(f, Tensor)
        return f if self.output_bias is None else f + self.output_bias.to(f.dtype)

    def hidden_states(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return h_1 .. h_L.

        Args:
            x: Inputs, shape ``(..., m)``.

        Returns:
            L tensors, shape ``(..., n_l)``.

        Raises:
            ValueError: If the last dimension of ``x`` is not m.
        """
        self._check_input(x)
        states = []
        for layer, phi, p in zip(self.hidden, self._plan.activations, self.dropout, strict=True):
            x = phi.function(layer(x))
            if p > 0 and self.training:
                x = nn.functional.dropout(x, p)
            states.append(x)
        return tuple(states)

    def readouts(self, x: Tensor) -> Tensor:
        """Return every f_l(x), unweighted.

        Args:
            x: Inputs, shape ``(..., m)``.

        Returns:
            f_l for all l, shape ``(..., L, d)``; ``output_bias`` belongs to none of them.

        Raises:
            ValueError: If the last dimension of ``x`` is not m.
        """
        scales = self._plan.readout_scales
        triples = zip(self.hidden_states(x), self.readout_weights(), scales, strict=True)
        return torch.stack([nn.functional.linear(h, v) * r for h, v, r in triples], dim=-2)

    def readout_weights(self) -> tuple[Tensor, ...]:
        """Return V_1 .. V_L.

        Returns:
            L views into ``readout_weight``, shape ``(d, n_l)``.
        """
        return tuple(self.readout_weight.split(self.hidden_features, dim=1))

    def project_(self) -> "NFTKMLP":
        """Project Omega onto the constraint set, in place; nothing happens without a constraint.

        Returns:
            The module itself.
        """
        if self.constraint is not None:
            with torch.no_grad():
                self.constraint.project_(self.omega)
        return self

    @classmethod
    def from_mlp(
        cls,
        mlp: nn.Module,
        *,
        constraint: "str | constraints.Projection | None" = "nonnegative",
        backend: str = "auto",
        precision: str = "highest",
    ) -> "NFTKMLP":
        """Build the NFT-K network that computes what a multilayer perceptron computes.

        Args:
            mlp: An ``nn.Sequential`` of ``nn.Linear`` and elementwise activations, with ``nn.Dropout`` anywhere
                between layers; nested ones and ``torchvision.ops.MLP`` too. Weights are copied; frozen hidden
                layers stay frozen, and a layer that stands in two places is copied twice. Biases that only some
                hidden layers have become zeros in the others. A dropout after the last layer is left out,
                with a warning, because f has none.
            constraint: As in the constructor.
            backend: As in the constructor.
            precision: As in the constructor.

        Returns:
            A network with Omega 1 for the last layer and 0 elsewhere, so the same function in eval mode; the new
            readouts are drawn from Xavier's normal distribution. A zero entry of Omega still has a gradient, so
            training opens the other layers. Device, dtype and mode are those of ``mlp``.

        Raises:
            TypeError: If ``mlp`` is no ``nn.Sequential``.
            ValueError: If it holds a module that an NFT-K network has no place for, or no hidden layer.

        Example:
            >>> import torch, nftk
            >>> from torch import nn
            >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
            >>> model, x = nftk.NFTKMLP.from_mlp(mlp), torch.randn(5, 4)
            >>> torch.allclose(model(x), mlp(x))
            True
        """
        from nftk.modules.from_mlp import convert

        return convert(cls, mlp, constraint=constraint, backend=backend, precision=precision)

    def canonicalize(self, data: Tensor) -> "NFTKMLP":
        r"""Return the same function with its scale freedoms taken away: every f_l has unit deviation over data.

        Omega alone is not identifiable, since (c omega_l, V_l / c) is the same function, and with relu so is
        (a W_l, a b_l, V_l / a, W_{l+1} / a) (docs/errata.md, 6). Afterwards ``omega[i, l]`` is the standard
        deviation of what layer l + 1 adds to logit i, whatever the scales were before.

        Args:
            data: Inputs, shape ``(n, m)``, at least two of them.

        Returns:
            A new network; its Omega may lie outside the constraint set, if that limits the size. A readout that is
            constant over the data keeps its scale.

        Raises:
            TypeError: If ``data`` is not a floating tensor.
            ValueError: If its shape does not fit, or it is not finite.

        Example:
            >>> import torch, nftk
            >>> model, x = nftk.NFTKMLP(4, [8, 8], 3), torch.randn(100, 4)
            >>> canonical = model.canonicalize(x)
            >>> torch.allclose(canonical(x), model(x), atol=1e-5)
            True
            >>> canonical.readouts(x).std(0, correction=0).allclose(torch.ones(2, 3))
            True
        """
        from nftk.modules.canonicalize import canonicalize

        return canonicalize(self, data)

    def prune(self) -> PrunedMLP:
        """Return a smaller network that computes the same function, without what Omega has closed.

        Layers after the last open one are gone, and the readouts of closed layers before it.

        Returns:
            A :class:`nftk.modules.PrunedMLP`, with Omega multiplied into its readouts. Dropout is left out.

        Example:
            >>> import torch, nftk
            >>> model = nftk.NFTKMLP(4, [8] * 5, 3, omega_init=torch.tensor([[0.0, 1.0, 0.0, 0.5, 0.0]]).expand(3, 5))
            >>> small, x = model.prune(), torch.randn(7, 4)
            >>> small.open_layers, len(small.hidden), torch.allclose(small(x), model(x), atol=1e-6)
            ((1, 3), 4, True)
        """
        return PrunedMLP(self, self._plan)

    def save(self, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write the network, its weights and its settings, to one safetensors file.

        Args:
            path: The file; written beside it and moved into place, so it is whole or not there.
            metadata: What else the file's header should hold, ready for JSON.

        Raises:
            ValueError: If the activation or the constraint is a user's own object, which no file can describe; keep
                ``state_dict()`` then.
        """
        from nftk.modules.model_file import save

        save(self, path, metadata)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "NFTKMLP":
        """Read a network that :meth:`save` wrote.

        Args:
            path: The file.
            device: Where to put it.

        Returns:
            The network, in eval mode.

        Raises:
            ValueError: If the file is missing, damaged, or not a network of nftk.
        """
        from nftk.modules.model_file import load

        return load(cls, path, device)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, ready for JSON, device and dtype apart.

        Returns:
            A dictionary; ``activation`` and ``constraint`` are None where they are a user's own objects.
        """
        names = [phi.name for phi in self._plan.activations]
        constraint = self.constraint
        return {
            "in_features": self.in_features,
            "hidden_features": list(self.hidden_features),
            "out_features": self.out_features,
            "activation": names[0] if len(set(names)) == 1 else names,
            "bias": any(layer.bias is not None for layer in self.hidden),
            "output_bias": self.output_bias is not None,
            "parameterization": self.parameterization,
            "constraint": constraint.config() if isinstance(constraint, constraints.Constraint) else None,
            "backend": self.backend,
            "precision": self.precision,
            "dropout": list(self.dropout),
            **({name: list(v) for name, v in self._variances().items()} if self.parameterization == "ntk" else {}),
        }

    def extra_repr(self) -> str:
        """Describe the network in one line.

        Returns:
            Sizes and the settings that are not the defaults.
        """
        widths = list(self.hidden_features)
        same = len(set(widths)) == 1 and len(widths) > 1
        shown = [
            str(self.in_features),
            f"[{widths[0]}] * {len(widths)}" if same else str(widths),
            str(self.out_features),
        ]
        names = [phi.name or getattr(phi.function, "__name__", "module") for phi in self._plan.activations]
        shown.append(f"activation={names[0] if len(set(names)) == 1 else names}")
        shown.append(f"parameterization={self.parameterization}")
        if self.parameterization == "ntk":
            shown += [
                f"{name}={value[0] if len(set(value)) == 1 else list(value)}"
                for name, value in self._variances().items()
            ]
        shown.append(f"constraint={self.constraint}")
        if self.output_bias is not None:
            shown.append("output_bias=True")
        if max(self.dropout) > 0:
            shown.append(f"dropout={list(self.dropout)}")
        if self.backend != "auto":
            shown.append(f"backend={self.backend}")
        if self.precision != "highest":
            shown.append(f"precision={self.precision}")
        return ", ".join(shown)

    def _variances(self) -> dict[str, tuple[float, ...]]:
        return {"weight_var": self.weight_var, "bias_var": self.bias_var, "readout_var": self.readout_var}

    def _per_layer(self, name: str, value: float | Sequence[float], *, above: bool = False) -> tuple[float, ...]:
        depth = len(self.hidden_features)
        values = [value] * depth if not isinstance(value, Sequence) else list(value)
        if len(values) != depth:
            raise ValueError(f"nftk.{_OP}: {name} must be a number or {depth} numbers, one a layer, got {len(values)}")
        return tuple(check_number(_OP, name, v, above=above) for v in values)

    def _make_plan(self, activation: Phi | Sequence[Phi]) -> Plan:
        widths, fan_in = self.hidden_features, (self.in_features, *self.hidden_features[:-1])
        listed = isinstance(activation, Sequence) and not isinstance(activation, str)
        phis: list[Any] = list(activation) if listed else [activation] * len(widths)  # type: ignore[arg-type]
        if len(phis) != len(widths):
            raise ValueError(f"nftk.{_OP}: activation must be one or {len(widths)}, one a layer, got {len(phis)}")
        ntk = self.parameterization == "ntk"
        ones = (1.0,) * len(widths)
        return Plan(
            widths=widths,
            activations=tuple(activations.resolve(activations.canonical(_OP, phi)) for phi in phis),
            weight_scales=_roots(self.weight_var, fan_in) if ntk else ones,
            bias_scales=_roots(self.bias_var, ones) if ntk else ones,
            readout_scales=_roots(self.readout_var, widths) if ntk else ones,
        )

    def _layers(self) -> Iterator[Any]:
        return iter(self.hidden)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            got = list(x.shape)
            raise ValueError(f"nftk.{_OP}: x must have shape [..., {self.in_features}], got {got}")


def _roots(variances: Sequence[float], fan_in: Sequence[float]) -> tuple[float, ...]:
    return tuple(math.sqrt(v / n) for v, n in zip(variances, fan_in, strict=True))
