"""What a pickle of PyTorch says, read as data: nothing in it is looked up, imported or called.

Python's own unpickler calls what a file names. This one knows the few names that stand for tensors and plain
containers, puts descriptions in their place, and refuses all others. A tensor becomes a `Piece` of a
`Storage`, whose bytes lie elsewhere in the file.
"""

import pickletools
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from ..messages import shown
from .tensors import DIMENSIONS, LARGEST, NAME_LIMIT

PICKLE_LIMIT = 16 * 2**20  # bytes; that of Stable Diffusion takes 0.5 MB
MOST_ARGUMENTS = 16
MOST_STEPS = 2**21  # a training checkpoint with its optimizer takes 300,000


class Unfit(ValueError):
    """What is wrong with a file; the text continues a sentence that starts with its name."""


@dataclass(frozen=True)
class Storage:
    """`numel` numbers of a type under a key of the file; a view of them starts at number `start`."""

    key: str
    dtype: torch.dtype
    numel: int
    start: int


@dataclass(frozen=True)
class Piece:
    """A tensor: its place in a storage, in numbers of its own type."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def unpickle(file: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """Content and storages of the pickle that begins at the file's position, which moves behind its end.

    Raises:
        Unfit: damaged, absurdly long, or naming what is neither a tensor nor a plain container.
    """
    machine, begin = Machine(), file.tell()
    try:
        for number, (opcode, argument, place) in enumerate(pickletools.genops(file)):
            if number == MOST_STEPS or (place or 0) - begin > PICKLE_LIMIT:
                raise Unfit("describes far more than a network's weights; take its .safetensors version.")
            if opcode.name == "STOP":
                return machine.stack.pop(), machine.storages
            if opcode.name not in STEPS:
                raise _more_than_weights(f"the instruction {opcode.name}")
            STEPS[opcode.name](machine, argument)
    except Unfit:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise damaged() from error
    raise AssertionError("genops ends with STOP or an error")


def damaged() -> Unfit:
    """What is said of a file that makes no sense."""
    return Unfit("cannot be read as plain weights; download it again or take its .safetensors version.")


def _more_than_weights(what: str) -> Unfit:
    return Unfit(
        f"holds more than plain weights ({shown(what)}), which is not read because it could run code; take "
        "its .safetensors version."
    )


# What stands for the things that a pickle names.


def _tensor(storage: Storage, offset: int, shape: Sequence[int], stride: Sequence[int], *_) -> Piece:
    return _typed_tensor(storage, offset, shape, stride, False, None, storage.dtype)


def _typed_tensor(
    storage: Storage,
    offset: int,
    shape: Sequence[int],
    stride: Sequence[int],
    _requires_grad: Any,
    _hooks: Any,
    dtype: torch.dtype,
    *_,
) -> Piece:
    if len(shape) > DIMENSIONS or len(shape) != len(stride) or not isinstance(dtype, torch.dtype):
        raise damaged()
    if max(shape, default=0) > LARGEST:
        raise damaged()
    return Piece(storage, dtype, _count(offset), tuple(map(_count, shape)), tuple(map(_count, stride)))


def _same(tensor: Any, *_) -> Any:
    return tensor


def _apply(function: Any, _, arguments: Any, __) -> Any:
    if function is _apply:
        raise damaged()
    return _call(function, arguments)


def _dict() -> dict[str, Any]:
    return {}


def _other(*_) -> None:
    """Something that no tensor depends on."""


NAMES: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch._tensor._rebuild_from_type_v2": _apply,
    "collections.OrderedDict": _dict,
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.float8_e4m3fn": torch.float8_e4m3fn,
    "torch.float8_e5m2": torch.float8_e5m2,
}
for _kind, _dtype in {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}.items():
    NAMES |= {f"torch.{_kind}Storage": _dtype, str(_dtype): _dtype}
for _name in (
    "torch.nn.parameter.Parameter",
    "torch.Tensor",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    "collections.Counter",
    "collections.defaultdict",
    "builtins.dict",
    "builtins.set",
    "builtins.bytearray",
    "builtins.complex",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
):
    NAMES[_name] = _other


def _find(name: str) -> Any:
    name = name.replace("__builtin__.", "builtins.")  # Python 2's
    if name not in NAMES:
        raise _more_than_weights(name)
    return NAMES[name]


def _call(function: Any, arguments: Any) -> Any:
    """No functions but those above get onto the stack."""
    if not isinstance(function, types.FunctionType) or not isinstance(arguments, tuple):
        raise damaged()
    if len(arguments) > MOST_ARGUMENTS:
        raise damaged()
    return function(*arguments)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**60:
        raise damaged()
    return value


class Machine:
    """The stack and the memory that a pickle's instructions work on."""

    def __init__(self):
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # what lies under each mark
        self.memory: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def mark(self) -> None:
        """Begin a new stack on top."""
        self.below.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        """What lies above the last mark, which goes too."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop_some(self, count: int) -> list[Any]:
        """The topmost items, in the order in which they came."""
        items = [self.stack.pop() for _ in range(count)]
        return items[::-1]

    def append(self, items: list[Any]) -> None:
        """Lengthen the list on top."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def enter(self, items: list[Any]) -> None:
        """Enter keys and values into the dict on top; only names lead to weights."""
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str) and isinstance(self.stack[-1], dict):
                if len(key) > NAME_LIMIT:  # comparing long ones takes time
                    raise Unfit(f"has a tensor whose name has {len(key):,} characters; take another file.")
                self.stack[-1][key] = value

    def push_storage(self) -> None:
        """Describe the storage that a persistent id stands for."""
        kind, dtype, key, _, numel, *view = self.stack.pop()
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str | int):
            raise damaged()
        start = 0
        if view and view[0] is not None:  # in files from before PyTorch 1.0
            _, start, numel = view[0]
        storage = Storage(str(key), dtype, _count(numel), _count(start))
        self.storages.setdefault(storage.key, storage)
        self.stack.append(storage)


Step = Callable[[Machine, Any], object]  # what an instruction does with its argument


def _pushing(make: Callable[[Machine, Any], Any]) -> Step:
    def step(machine: Machine, argument: Any) -> None:
        value = make(machine, argument)  # which may change what the stack is
        machine.stack.append(value)

    return step


# What makes objects of other classes is not here.
STEPS: dict[str, Step] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "NONE": _pushing(lambda m, a: None),
    "NEWTRUE": _pushing(lambda m, a: True),
    "NEWFALSE": _pushing(lambda m, a: False),
    "EMPTY_TUPLE": _pushing(lambda m, a: ()),
    "EMPTY_LIST": _pushing(lambda m, a: []),
    "EMPTY_DICT": _pushing(lambda m, a: {}),
    "EMPTY_SET": _pushing(lambda m, a: None),
    "MARK": lambda m, a: m.mark(),
    "TUPLE": _pushing(lambda m, a: tuple(m.pop_to_mark())),
    "TUPLE1": _pushing(lambda m, a: tuple(m.pop_some(1))),
    "TUPLE2": _pushing(lambda m, a: tuple(m.pop_some(2))),
    "TUPLE3": _pushing(lambda m, a: tuple(m.pop_some(3))),
    "LIST": _pushing(lambda m, a: m.pop_to_mark()),
    "APPEND": lambda m, a: m.append(m.pop_some(1)),
    "APPENDS": lambda m, a: m.append(m.pop_to_mark()),
    "SETITEM": lambda m, a: m.enter(m.pop_some(2)),
    "SETITEMS": lambda m, a: m.enter(m.pop_to_mark()),
    "ADDITEMS": lambda m, a: m.pop_to_mark(),
    "POP": lambda m, a: m.stack.pop(),
    "DUP": _pushing(lambda m, a: m.stack[-1]),
    "MEMOIZE": lambda m, a: m.memory.update({len(m.memory): m.stack[-1]}),
    "GLOBAL": _pushing(lambda m, a: _find(a.replace(" ", ".", 1))),
    "STACK_GLOBAL": _pushing(lambda m, a: _find(".".join(m.pop_some(2)))),
    "REDUCE": _pushing(lambda m, a: _call(*m.pop_some(2))),
    "NEWOBJ": _pushing(lambda m, a: _call(*m.pop_some(2))),
    "BUILD": lambda m, a: m.stack.pop(),  # attributes of an object
    "BINPERSID": lambda m, a: m.push_storage(),
}
for _literal in (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8"
).split():
    STEPS[_literal] = _pushing(lambda m, a: a)
for _prefix in ("", "BIN", "LONG_BIN"):
    STEPS[f"{_prefix}PUT"] = lambda m, a: m.memory.update({a: m.stack[-1]})
    STEPS[f"{_prefix}GET"] = _pushing(lambda m, a: m.memory[a])
