"""A trainer's parameters and an in-process vLLM model -> the cheapest right way from one to the other.

Three routes, the first that a model's layout allows:

- shared: the trainer's parameters are views of the engine's tensors, so an optimizer step is the update.
- copy: each weight is written into its place in the engine's tensors; what the CPU build keeps packed for its
  matrix products is packed anew.
- reload: vLLM's own loader, which knows every layer and quantisation, and is the slowest.

vLLM fuses neighbouring projections along their output dimension (q, k, v; gate, up). Which ones, its model
classes tell in `packed_modules_mapping`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from verigrad.engine.config import ConfigError
from verigrad.engine.rollout import Engine

Route = Literal["shared", "copy", "reload"]
ONEDNN_ROWS = 128  # from here on the blocked product is faster than the plain one


class NoLayout(Exception):
    """Why the weights of a trainer have no known places in an engine."""


class Trainer(Protocol):
    """What is read of engine/policy.py's Policy."""

    model: Any
    adapted: bool

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight by its Hugging Face name."""
        ...


@dataclass(frozen=True, slots=True)
class Reached:
    """The route that an engine's weights take from now on, and why it is not a cheaper one."""

    route: Route
    why: str = ""

    def __str__(self) -> str:
        return f"{self.route} ({self.why})" if self.why else self.route


def connect(trainer: Trainer, engine: Engine, wanted: str) -> Reached:
    """Find the cheapest route that is certain, of those that `wanted` (sync.route) allows, and take it.

    Trainer and engine must hold the same weights when this is called (with adapters: the same base).
    Raises ConfigError where a route was asked for by name and cannot be.
    """
    reached = _connected(trainer, engine, wanted)
    if wanted not in ("auto", reached.route):
        raise ConfigError(
            f"sync.route = {wanted!r} cannot be here: {reached.why}; set sync.route = 'auto', which takes "
            f"{reached.route!r}"
        )
    return reached


def _connected(trainer: Trainer, engine: Engine, wanted: str) -> Reached:
    if wanted == "reload":
        return Reached("reload")
    lay_out = getattr(engine, "lay_out", None)
    if lay_out is None:
        return Reached("reload", "the sampler is no vLLM engine in this process")
    try:
        layout: Layout = lay_out({name: weight.shape for name, weight in trainer.weights()})
        if not trainer.adapted and not layout.holds(trainer.weights()):
            raise NoLayout("the engine does not compute with the weights that the trainer started from")
    except NoLayout as error:
        lay_out(None)
        return Reached("reload", str(error))
    if wanted == "copy":
        return Reached("copy")
    if trainer.adapted:
        return Reached("copy", "adapters are merged on the way")
    try:
        layout.share(trainer.model)
    except NoLayout as error:
        return Reached("copy", str(error))
    return Reached("shared")


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor of the engine, and the trainer's weights that it holds one after the other, along dim 0."""

    owner: nn.Module
    attribute: str
    names: Sequence[str]  # of the trainer's weights
    rows: Sequence[int]  # of each
    packed: bool  # the engine keeps only a packed form of it

    def views(self) -> Iterator[tuple[str, Tensor]]:
        """Each weight's name and its place, a contiguous view of the engine's own memory."""
        whole = getattr(self.owner, self.attribute).data
        start = 0
        for name, num in zip(self.names, self.rows, strict=True):
            yield name, whole[start : start + num]
            start += num


class Layout:
    """Where each weight of a trainer stands in a vLLM model. Raises NoLayout where that is not certain."""

    def __init__(self, model: Any, shapes: Mapping[str, torch.Size]) -> None:
        """`shapes`: the trainer's weights by their Hugging Face names."""
        self.shared = False
        self.places = _places(model, shapes)
        self.place_of = {name: place for place in self.places for name in place.names}
        self.packing = _packing(model)
        _require_all_covered(model, self.places, self.packing)

    @property
    def packed(self) -> bool:
        """Whether the engine computes with packed copies, so that its memory cannot be shared."""
        return bool(self.packing)

    @torch.no_grad()
    def write(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Put weights into their places and pack what is used packed; a weight that is there already stays.

        All weights, in any order; those of one fused tensor are held until the last of them has come.
        """
        waiting: dict[int, dict[str, Tensor]] = {}
        written: set[str] = set()
        for name, weight in weights:
            if name not in self.place_of:
                raise NoLayout(f"weight {name!r} has no place in the engine's model")
            place = self.place_of[name]
            held = waiting.setdefault(id(place), {})
            held[name] = weight
            written.add(name)
            if len(held) == len(place.names):
                _fill(place, waiting.pop(id(place)))
        if missing := self.place_of.keys() - written:
            raise NoLayout(f"{len(missing)} weights were not sent, {min(missing)!r} among them")
        for module in self.packing:
            if module.weight.numel():  # its own weight is kept beside the packed copy, and was written
                _pack(module, remove_weight=False)

    @torch.no_grad()
    def share(self, model: nn.Module) -> None:
        """Make the model's parameters views of the engine's memory, with the values that the model has.

        Raises NoLayout, and changes nothing, where number type, device or shape do not allow it.
        """
        parameters = dict(model.named_parameters())
        if self.packed:
            raise NoLayout("the engine keeps its weights packed for this processor")
        views = {name: view for place in self.places for name, view in place.views()}
        for name, parameter in parameters.items():
            view = views[name]
            if (view.dtype, view.device) != (parameter.dtype, parameter.device):
                raise NoLayout(
                    f"{name} is {parameter.dtype} on {parameter.device} in the trainer and {view.dtype} on "
                    f"{view.device} in the engine"
                )
            if view.shape != parameter.shape or not view.is_contiguous() or view.is_inference():
                raise NoLayout(f"{name} is held by the engine in a form that cannot be trained")
        for name, parameter in parameters.items():
            views[name].copy_(parameter)
            parameter.data = views[name]
        self.shared = True

    def holds(self, weights: Iterable[tuple[str, Tensor]]) -> bool:
        """Whether the engine computes with these values: compares them, or products where they are packed."""
        given = dict(weights)
        return given.keys() == self.place_of.keys() and all(_same(place, given) for place in self.places)


@contextmanager
def unpacked(wanted: bool) -> Iterator[None]:
    """While an engine is built within: its CPU build computes with plain weights, not with packed copies.

    Such an engine takes weights through a Layout alone: vLLM's loader would pack them again.
    """
    if not wanted:
        yield
        return
    from vllm.model_executor.layers import utils

    packs = utils.dispatch_cpu_unquantized_gemm
    utils.dispatch_cpu_unquantized_gemm = _leave_plain
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = packs


def _leave_plain(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = plain_linear


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., K] times weight [N, K] transposed, plus bias [N], by the faster product for its size."""
    if x.dtype == torch.float32 and x.numel() >= ONEDNN_ROWS * x.shape[-1]:
        done: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return done
    return nn.functional.linear(x, weight, bias)


def _places(model: Any, shapes: Mapping[str, torch.Size]) -> list[Place]:
    parts_of: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
    modules = dict(model.named_modules(remove_duplicate=False))
    fused = {part: (whole, parts) for whole, parts in parts_of.items() for part in parts}
    places, seen = [], set()
    for name in shapes:
        owner, _, attribute = name.rpartition(".")
        above, _, last = owner.rpartition(".")
        whole, parts = fused.get(last, (last, [last]))
        path = f"{above}.{whole}" if above else whole
        if path not in modules:
            whole, parts, path = last, [last], owner
        if path not in modules:
            raise NoLayout(f"the engine's model has no layer {path!r}")
        if (path, attribute) in seen:
            continue
        seen.add((path, attribute))
        names = [f"{above}.{part}.{attribute}" if above else f"{part}.{attribute}" for part in parts]
        if absent := [each for each in names if each not in shapes]:
            raise NoLayout(f"the trainer has no weight {absent[0]!r}")
        places.append(_place(modules[path], path, attribute, names, shapes))
    return places


def _place(
    owner: nn.Module, path: str, attribute: str, names: Sequence[str], shapes: Mapping[str, torch.Size]
) -> Place:
    held = getattr(owner, attribute, None)
    if not isinstance(held, nn.Parameter):
        raise NoLayout(f"the engine's layer {path!r} has no parameter {attribute!r}")
    rows = [shapes[name][0] for name in names]
    packed = held.numel() == 0 and hasattr(owner, "cpu_linear")
    if packed:
        layer: Any = owner
        whole = torch.Size((layer.output_size_per_partition, layer.input_size_per_partition))
    else:
        whole = held.shape
    fits = all(shapes[name][1:] == whole[1:] for name in names)
    vocabulary = hasattr(owner, "num_embeddings_padded")  # vLLM adds rows that no token has
    if not fits or (sum(rows) != whole[0] and not (vocabulary and sum(rows) < whole[0])):
        ours = " + ".join(str(tuple(shapes[name])) for name in names)
        raise NoLayout(f"the engine's {path}.{attribute} is {tuple(whole)}, the trainer's {ours}")
    return Place(owner, attribute, names, rows, packed)


def _packing(model: Any) -> list[Any]:
    """The layers whose products go through a packed copy; of the embeddings only those that are a head."""
    head = getattr(model, "lm_head", None)
    return [
        module
        for module in model.modules()
        if getattr(module, "cpu_linear", plain_linear) is not plain_linear
        and module.cpu_linear is not nn.functional.linear
        and (module is head or not hasattr(module, "num_embeddings_padded"))
    ]


def _require_all_covered(model: Any, places: Sequence[Place], packing: Sequence[Any]) -> None:
    """Every parameter of the engine, and every layer that packs, must be one that is written."""
    written = {id(getattr(place.owner, place.attribute)) for place in places}
    for name, parameter in model.named_parameters():
        if id(parameter) not in written:
            raise NoLayout(f"the engine's {name} is none of the trainer's weights")
    owners = {id(place.owner) for place in places if place.attribute == "weight"}
    for module in packing:
        if id(module) not in owners and id(getattr(module, "weight", None)) not in written:
            raise NoLayout("a packed layer of the engine holds none of the trainer's weights")


def _fill(place: Place, weights: Mapping[str, Tensor]) -> None:
    if not place.packed:
        for name, view in place.views():
            if weights[name].data_ptr() != view.data_ptr():
                view.copy_(weights[name])
        return
    layer: Any = place.owner
    whole = torch.cat([weights[name] for name in place.names]).to(layer.weight.dtype)
    layer.weight = nn.Parameter(whole, requires_grad=False)
    _pack(layer, remove_weight=True)


def _pack(layer: Any, *, remove_weight: bool) -> None:
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    dispatch_cpu_unquantized_gemm(layer, remove_weight)


@torch.no_grad()
def _same(place: Place, given: Mapping[str, Tensor]) -> bool:
    layer: Any = place.owner
    if not place.packed:
        return all(torch.equal(view, given[name].to(view.dtype)) for name, view in place.views())
    whole = torch.cat([given[name] for name in place.names]).to(layer.weight.dtype)
    probe = torch.randn(4, whole.shape[1], generator=torch.Generator().manual_seed(0)).to(whole.dtype)
    ours, theirs = nn.functional.linear(probe, whole).float(), layer.cpu_linear(probe, None, None).float()
    limit = (1e-4 if whole.dtype == torch.float32 else 5e-2) * float(ours.abs().max())
    return float((ours - theirs).abs().max()) <= limit
