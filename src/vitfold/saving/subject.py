"""The model of a plan: describing it, comparing it with another, building it again."""

from torch import Tensor, nn

from vitfold.errors import MissingExtra, PlanError, UnsupportedModel
from vitfold.folding.calls import folds, parts
from vitfold.folding.families import Family, find
from vitfold.folding.fold import clone
from vitfold.saving import fields, sources, store, weights
from vitfold.saving.learned import is_learned
from vitfold.saving.schema import DTYPES, MOST, PACKAGES, Model, Plan, Trunk, Weights
from vitfold.saving.sources import Origin, packaged
from vitfold.tools.digest import fingerprint
from vitfold.tools.results import version

REMEDY = "give the model, vitfold.load(directory, model), or save it with backbone=True"

PIXELS = 2**26
"""The most numbers of an image: 256 MB of them."""


def describe(model: nn.Module, *, backbone: bool = False) -> Plan:
    """The plan of a model, as it is saved."""
    records = folds(model)
    if len(records) > 1:
        raise PlanError(
            f"{type(model).__name__} has {parts(records)}, and a plan is of one: save each of them "
            "by itself"
        )
    record = records[0] if records else None
    learns = record is not None and record.learned is not None
    stored = Weights(store.WEIGHTS, backbone) if backbone or learns else None
    dense = describe_dense(clone(model) if records else model, backbone=backbone)
    versions = _versions(dense.source)
    if record is None:
        return Plan(dense, None, (), stored, versions)
    return Plan(dense, record.method, record.schedule, stored, versions, record.out)


def describe_dense(model: nn.Module, *, backbone: bool, origin: Origin | None = None) -> Model:
    """The fields of a plan for a model that is not folded.

    origin: what makes it, where that is known.
    """
    state = model.state_dict()
    origin = origin or sources.describe(model)
    digest: str | None = None
    try:
        digest = fingerprint(state)
    except PlanError:
        if backbone:
            raise
        # By name it would come back with weights that nobody could compare.
        origin = Origin(sources.OTHER, type(model).__qualname__, {})
    floating = (t for t in state.values() if isinstance(t, Tensor) and t.is_floating_point())
    dtypes = (dtype for tensor in floating if (dtype := _dtype(tensor)) in DTYPES)
    return Model(
        **origin._asdict(),
        dataset=dataset_of(model),
        trunk=_trunk(_family(model)),
        dtype=next(dtypes, "float32"),
        buffers=[_dtype(table) for table in _tables(model)],
        values=_values(model),
        fingerprint=digest,
    )


def dataset_of(model: nn.Module) -> str | None:
    """The dataset in vitfold for a model, folded or not; None where it has none."""
    name = packaged.SOURCE.identify(model)
    return None if name is None else packaged.dataset(name)


def _family(model: nn.Module) -> Family | None:
    """What describes the trunk of a model; None where none can be folded."""
    try:
        return find(model)
    except UnsupportedModel:
        return None


def _trunk(family: Family | None) -> Trunk | None:
    return None if family is None else Trunk(family.depth, family.width, family.prefix)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _tables(model: nn.Module) -> list[Tensor]:
    """The floating buffers that a model computes when it is built, and does not save."""
    state, buffers = model.state_dict(), model.named_buffers()
    return [table for name, table in buffers if name not in state and table.is_floating_point()]


def _values(model: nn.Module) -> int:
    """How many numbers a model holds; shared ones count once."""
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def _versions(source: str) -> dict[str, str]:
    used = PACKAGES if source == "transformers" else PACKAGES[:-1]
    return {package: version(package) or "unknown" for package in used}


def fit(plan: Plan, model: nn.Module, stored: weights.Tensors | None) -> Family | None:
    """Refuse a model that the plan was not made for, or that its weights do not fit; otherwise
    what describes its trunk, None where it has none."""
    try:
        family = find(model)
    except UnsupportedModel:
        if plan.method is not None:
            raise
        family = None
    _fit_trunk(plan.model.trunk, _trunk(family), type(model).__name__)
    _fit_name(plan.model, model)
    if plan.weights and stored is not None:
        state = model.state_dict()
        own = {name: tensor for name, tensor in state.items() if not is_learned(name)}
        weights.check(stored, own, plan.weights.file)
    return family


def _fit_name(record: Model, model: nn.Module) -> None:
    """Refuse a model that says another name; one that a file made, or nothing, is welcome."""
    if record.source == sources.OTHER or not sources.source(record.source).builds:
        return
    name = sources.source(record.source).identify(model)
    if name is None and (source := sources.identify(model, by_hand=False)[0]) != sources.OTHER:
        raise PlanError(f"{fields.FILE}: model.source={record.source!r}: this model is of {source}")
    # What follows the point names weights, not a model.
    if name is not None and record.name.partition(".")[0] != name.partition(".")[0]:
        raise PlanError(f"{fields.FILE}: model.name={record.name!r}: this model is {name}")


def _fit_trunk(record: Trunk | None, trunk: Trunk | None, kind: str) -> None:
    if record is None or trunk is None:
        if record is not trunk:
            raise PlanError(f"{fields.FILE}: model.trunk={record}: this {kind} has {trunk}")
        return
    for field, value in vars(trunk).items():
        if value != (expected := getattr(record, field)):
            raise PlanError(
                f"{fields.FILE}: model.trunk.{field}={expected}: this {kind} has {value}"
            )


def rebuild(plan: Plan, stored: weights.Tensors | None) -> nn.Module:
    """The model by name, in evaluation mode. Memory is taken only once sizes are checked."""
    if plan.model.source == sources.OTHER:
        raise PlanError(
            f"{fields.FILE}: model.source='other': {plan.model.name} cannot be made by name: give "
            "the model, vitfold.load(directory, model)"
        )
    blank = _make(plan.model, stored or {}, blank=True)
    try:
        family = fit(plan, blank, stored)
    except UnsupportedModel as error:
        raise PlanError(f"{fields.FILE}: model.name={plan.model.name!r}: {error}") from error
    _check_size(blank, plan.model.values)
    if plan.method is not None and family is not None:
        _check_images(family)
    return _make(plan.model, stored or {}, pretrained=stored is None).eval()


def check_values(plan: Plan, tensors: weights.Tensors) -> None:
    """Refuse weights, those beside the plan or pretrained ones, that are not what was saved."""
    if fingerprint(tensors) == plan.model.fingerprint:
        return
    if plan.weights and plan.weights.backbone:
        raise PlanError(f"{plan.weights.file}: its values are not those of model.fingerprint")
    raise PlanError(
        f"{fields.FILE}: model.fingerprint: what was saved were not the pretrained weights of "
        f"{plan.model.name!r}: {REMEDY}"
    )


def _check_size(blank: nn.Module, count: int | None) -> None:
    """Refuse a model that a number in a plan makes larger than it was."""
    values = _values(blank)
    if values > MOST or count not in (None, values):
        expected = f"model.values={count}" if count is not None else f"at most {MOST}"
        raise PlanError(
            f"{fields.FILE}: model.arguments make {values} numbers: expected {expected}"
        )


def _check_images(family: Family) -> None:
    """Refuse a model whose images a number in a plan makes too large."""
    try:
        pixels = sum(t.numel() for t in family.example().values() if isinstance(t, Tensor))
    # Sizes of all kinds go into the shape of an image: what is wrong with them is torch's to say.
    except Exception as error:
        reason = fields.clip(error or type(error).__name__)
        raise PlanError(f"{fields.FILE}: model.arguments make no image ({reason})") from error
    if pixels > PIXELS:
        raise PlanError(
            f"{fields.FILE}: model.arguments make images of {pixels} numbers: expected at most "
            f"{PIXELS}"
        )


def _make(
    record: Model, stored: weights.Tensors, *, pretrained: bool = False, blank: bool = False
) -> nn.Module:
    """The model of a record in the dtypes of what is stored, pretrained or with random weights, or
    on the meta device; errors inside its library become errors of the plan."""
    origin = Origin(record.source, record.name, record.arguments)
    try:
        model = sources.sketch(origin) if blank else sources.build(origin, pretrained=pretrained)
    except (PlanError, MissingExtra):
        raise
    # Constructors and downloads of other libraries: they raise whatever they like.
    except Exception as error:
        reason = fields.clip(error or type(error).__name__)
        if pretrained:
            what = f"model.name={record.name!r}: its pretrained weights cannot be had: {REMEDY}"
        else:
            what = f"model.arguments do not make a {record.name}"
        raise PlanError(f"{fields.FILE}: {what} ({reason})") from error
    cast(model, record, stored)
    return model


def cast(model: nn.Module, record: Model, stored: weights.Tensors) -> None:
    """Give every floating tensor the dtype that it was saved with."""
    tables = _tables(model)
    if len(tables) != len(record.buffers):
        count = len(record.buffers)
        raise PlanError(f"{fields.FILE}: model.buffers has {count} dtypes: expected {len(tables)}")
    for table, dtype in zip(tables, record.buffers, strict=True):
        table.data = table.data.to(DTYPES[dtype])
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            saved = stored.get(name, tensor)
            kept = name in stored and saved.is_floating_point()
            tensor.data = tensor.data.to(saved.dtype if kept else DTYPES[record.dtype])
