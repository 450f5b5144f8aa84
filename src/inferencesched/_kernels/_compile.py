"""How is a kernel compiled, and which kernels exist?

Rules of the cellar:

* this package is the only place that imports numba;
* a kernel is a plain function: arrays and scalars in, arrays and scalars out;
* never ``fastmath``: under it ``x != x`` is false for NaN, and a broken scorer could win unseen;
* no explicit signatures (a read-only array is another numba type), so callers coerce dtypes;
* a kernel returns no array that it was given, nor a part of one: arrays between kernels are lent, not counted;
* a kernel may call a kernel of another module of this package, and only of this one: the disk cache is keyed by all
  its sources, where numba's own sees edits in a kernel's own file alone.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
from numba.core import cgutils, types
from numba.core.caching import FunctionCache
from numba.core.imputils import impl_ret_borrowed
from numba.extending import NativeValue, intrinsic, lower_cast, models, register_model, unbox
from numba.np.arrayobj import populate_array
from numba.np.numpy_support import as_dtype

from inferencesched._typing import DepthArray, FloatArray, HashArray, TokenArray

P = ParamSpec("P")
R = TypeVar("R")
_A = TypeVar("_A", TokenArray, HashArray, FloatArray)

#: Every kernel by qualified name, for tests that bound options and signatures.
KERNELS: dict[str, Any] = {}

OPTIONS = {"nogil": True, "fastmath": False, "boundscheck": False, "error_model": "numpy"}
#: Added where only kernels call: no function for Python, none for C.
BARE = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def _sources() -> str:
    """Return a digest of every source of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_SOURCES = _sources()


class _Cache(FunctionCache):  # type: ignore[misc]  # numba is untyped
    """numba's disk cache, keyed by all sources of this package and by who calls."""

    kind = "from Python"

    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(signature, codegen), _SOURCES, self.kind)


class _Within(_Cache):
    kind = "from a kernel"


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile lazily, cached on disk where a directory is writable and in memory where none is.

    Called by another kernel it is compiled without what only Python's calls need, a third of the work, and once for
    all types that stand for the same: see `_stands_for`.
    """
    compiled, within = (numba.njit(**OPTIONS, **more)(function) for more in ({}, BARE))
    with suppress(RuntimeError):  # numba finds no writable place for its cache: a read-only install
        compiled._cache, within._cache = _Cache(function), _Within(function)  # what `cache=True` does, with our key
    compiled.get_call_template = lambda args, kws: _called(within, args, kws)
    compiled.get_overload = within.get_overload
    KERNELS[f"{function.__module__}.{function.__qualname__}"] = compiled
    return cast(Callable[P, R], compiled)


def _called(within: Any, args: Any, kws: Any) -> Any:
    """Answer the compiler, which asks what a call from a kernel returns."""
    found = within.get_call_template([_stands_for(kind) for kind in args], kws)
    if any(isinstance(signature.return_type, Lent) for signature in within.nopython_signatures):
        raise TypeError(f"{within.py_func.__qualname__} returns an array that it was given")
    return found


def _stands_for(kind: Any) -> Any:
    """Return the type with which a kernel is compiled that is called by another one with such an argument.

    Every integer constant would be a type of its own, and so would int32. An array is lent: the caller holds it.
    """
    kind = types.unliteral(kind)
    if isinstance(kind, types.Array) and kind.layout == "C" and kind.aligned:
        return Lent(kind.dtype, kind.ndim, not kind.mutable)
    return types.int64 if isinstance(kind, types.Integer) and kind.signed else kind


def entry(function: Callable[P, R], *arguments: Any) -> Callable[P, R]:
    """Return a kernel's machine code for arguments like these, without the 0.15 us that numba looks at their types.

    Whoever calls it has to be sure of dtype, dimensions and layout. Read-only arrays may stand for writable ones that
    the kernel does not write to.
    """
    return cast(Callable[P, R], cast(Any, function).compile(tuple(map(numba.typeof, arguments))))


def lent(function: Callable[P, R], *arguments: Any) -> Callable[P, R]:
    """Return a kernel's machine code as `entry` does, without the 20 ns in which numba takes hold of each array.

    An array is looked at where it lies: one of another dtype or number of dimensions, not contiguous, not aligned, or
    read-only where the example is not, is a `TypeError`, and the kernel has not begun. The caller has to be sure that
    it is an array, ``type(x) is ndarray``; the call keeps it alive, so the kernel must not return it. A tuple is passed
    as a handle (`item_of`).
    """
    return cast(Callable[P, R], cast(Any, function).compile(tuple(map(_lent_type, arguments))))


def _lent_type(argument: Any) -> Any:
    kind = numba.typeof(argument)
    if isinstance(kind, types.Array):
        return Lent(kind.dtype, kind.ndim, not kind.mutable)
    return _HANDLE if isinstance(argument, tuple) else kind


class Lent(types.Array):  # type: ignore[misc]  # numba is untyped
    """An array that a kernel reads through its caller's reference, and counts no reference of its own."""

    def __init__(self, dtype: Any, ndim: int, readonly: bool) -> None:
        words = "lent readonly" if readonly else "lent"
        super().__init__(dtype, ndim, "C", readonly=readonly, name=f"{words}({dtype}, {ndim}d)")


class _Handle(types.Opaque):  # type: ignore[misc]
    """An object of Python's by its address."""


_HANDLE = _Handle("handle")
register_model(Lent)(models.ArrayModel)
register_model(_Handle)(models.OpaqueModel)


@lower_cast(types.Array, Lent)  # type: ignore[untyped-decorator]
def _lend(_context: Any, _builder: Any, _kind: Any, _lent: Any, array: Any) -> Any:
    return array


#: What the C interfaces promise: words behind an array's head, and its flags; a dtype's byte order and number.
_HEAD = object.__basicsize__
_TYPE = _HEAD - 8
_DATA, _DIMENSIONS, _SHAPE, _DTYPE, _FLAGS = (_HEAD + 8 * i for i in (0, 1, 2, 5, 6))
_ORDER, _NUMBER = _HEAD + 10, _HEAD + 12
_PLAIN, _WRITEABLE = 0x0001 | 0x0100, 0x0400  # contiguous and aligned
_ITEMS = tuple.__basicsize__


@unbox(_Handle)  # type: ignore[untyped-decorator]
def _by_address(_kind: Any, thing: Any, c: Any) -> Any:
    return NativeValue(c.builder.bitcast(thing, c.pyapi.voidptr))


@unbox(Lent)  # type: ignore[untyped-decorator]
def _look_at(kind: Any, array: Any, c: Any) -> Any:
    """Read where an array's data are and how many, after its flags and dtype are found to be the right ones."""
    builder, ir = c.builder, cgutils.ir
    byte, short, word = ir.IntType(8), ir.IntType(32), ir.IntType(64)

    def read(base: Any, offset: int, cell: Any) -> Any:
        place = builder.gep(builder.bitcast(base, byte.as_pointer()), [word(offset)])
        return builder.load(builder.bitcast(place, cell.as_pointer()))

    dtype, flags = read(array, _DTYPE, byte.as_pointer()), read(array, _FLAGS, short)
    wanted, wrong = _PLAIN | (_WRITEABLE if kind.mutable else 0), cgutils.false_bit
    for found, expected in (
        (builder.and_(flags, short(wanted)), wanted),
        (read(array, _DIMENSIONS, short), kind.ndim),
        (read(dtype, _NUMBER, short), as_dtype(kind.dtype).num),
        (read(dtype, _ORDER, byte), ord(as_dtype(kind.dtype).byteorder)),
    ):
        wrong = builder.or_(wrong, builder.icmp_unsigned("!=", found, found.type(expected)))
    native = c.context.make_array(kind)(c.context, builder)
    with builder.if_else(wrong, likely=False) as (refused, taken):
        with refused:
            c.pyapi.err_set_string("PyExc_TypeError", f"not a contiguous {kind.dtype} array, {kind.ndim}-dimensional")
        with taken:
            axes, size = read(array, _SHAPE, word.as_pointer()), as_dtype(kind.dtype).itemsize
            shape = [read(axes, 8 * axis, word) for axis in range(kind.ndim)]
            strides = [word(size)]
            for count in shape[:0:-1]:
                strides.insert(0, builder.mul(strides[0], count))
            data = read(array, _DATA, native.data.type)
            populate_array(native, data, shape, strides, word(size), None)
    return NativeValue(native._getvalue(), is_error=wrong)


def _fold_product(_context: Any, _a: Any, _b: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = arguments[0].type
        wide = type(word)(128)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        high = builder.lshr(product, wide(64))
        return builder.xor(builder.trunc(product, word), builder.trunc(high, word))

    return types.uint64(types.uint64, types.uint64), build


def _swap_bytes(_context: Any, _a: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bswap(arguments[0])

    return types.uint64(types.uint64), build


def _signed(_context: Any, _a: Any) -> Any:
    def build(_target: Any, _builder: Any, _signature: Any, arguments: Any) -> Any:
        return arguments[0]

    return types.int64(types.uint64), build


def _load(size: int) -> Any:
    def load(_context: Any, _address: Any) -> Any:
        def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            word = arguments[0].type
            cell = type(word)(size)
            value = builder.load(builder.inttoptr(arguments[0], cell.as_pointer()))
            return value if size == 64 else builder.sext(value, word)

        return (types.uint64 if size == 64 else types.int64)(types.int64), build

    return load


def _pointer(cell: Any) -> Any:
    def pointer(_context: Any, _address: Any) -> Any:
        def build(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], target.get_value_type(signature.return_type))

        return types.CPointer(cell)(types.int64), build

    return pointer


def _address(_context: Any, thing: Any) -> Any:
    def build(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[0]
        if isinstance(signature.args[0], types.Array):
            value = target.make_array(signature.args[0])(target, builder, value).data
        return builder.ptrtoint(value, target.get_value_type(types.int64))

    return types.int64(thing), build


def _frozen(_context: Any, array: Any) -> Any:
    def build(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return impl_ret_borrowed(target, builder, signature.return_type, arguments[0])

    return types.Array(array.dtype, array.ndim, array.layout, readonly=True)(array), build


def _add(_context: Any, _address: Any, _value: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        cell = arguments[1].type.as_pointer()
        return builder.atomic_rmw("add", builder.inttoptr(arguments[0], cell), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), build


def _store(size: int) -> Any:
    def store(_context: Any, _address: Any, _value: Any) -> Any:
        def build(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            word = arguments[0].type
            cell = type(word)(size)
            value = arguments[1] if size == 64 else builder.trunc(arguments[1], cell)
            builder.store(value, builder.inttoptr(arguments[0], cell.as_pointer()))
            return target.get_dummy_value()

        return types.void(types.int64, types.uint64 if size == 64 else types.int64), build

    return store


def _prefetch(_context: Any, _address: Any) -> Any:
    def build(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = arguments[0].type
        byte, short = type(word)(8).as_pointer(), type(word)(32)
        kind = cgutils.ir.FunctionType(cgutils.ir.VoidType(), [byte, short, short, short])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        to_read, keep, data = short(0), short(3), short(1)
        builder.call(hint, [builder.inttoptr(arguments[0], byte), to_read, keep, data])
        return target.get_dummy_value()

    return types.void(types.int64), build


def _stack(_context: Any, _count: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        with builder.goto_entry_block():
            return builder.alloca(cgutils.ir.DoubleType(), size=ON_STACK)

    return types.CPointer(types.float64)(types.int64), build


#: So many float64 fit on the stack of a kernel that asks for them.
ON_STACK = 1024
#: Return the address of `ON_STACK` float64 on the caller's stack, gone when it returns.
stack_pointer: Callable[[int], int] = intrinsic(_stack)
#: Read what lies at a pointer as an array of so many.
carray: Callable[[int, int], FloatArray] = numba.carray
#: Multiply two uint64 to 128 bits and xor the halves: one instruction and a xor, where Python has four products.
fold_product: Callable[[np.uint64, np.uint64], np.uint64] = intrinsic(_fold_product)
#: Reverse the eight bytes of a uint64.
swap_bytes: Callable[[np.uint64], np.uint64] = intrinsic(_swap_bytes)
#: Read a uint64 as int64: `int` leaves its type as it is, and with an int64 it would become a float64.
signed: Callable[[np.uint64], int] = intrinsic(_signed)
#: Return an array as one to be read only: a kernel that only reads is compiled once for both.
frozen: Callable[[_A], _A] = intrinsic(_frozen)
#: Read or write an int32 or a uint64 at an address; whoever passes the address keeps the array alive.
load32: Callable[[int], int] = intrinsic(_load(32))
load64: Callable[[int], np.uint64] = intrinsic(_load(64))
store32: Callable[[int, int], None] = intrinsic(_store(32))
store64: Callable[[int, np.uint64], None] = intrinsic(_store(64))
#: Tell the processor that an address will be read: it starts to fetch, and goes on.
prefetch: Callable[[int], None] = intrinsic(_prefetch)
#: Add to an int64 at an address and return what was there before, as one step for all threads, in one order for all:
#: no read or write moves from behind it to before it, nor the other way.
add64: Callable[[int, int], int] = intrinsic(_add)
#: Return the address of an array's data, or of what a handle stands for.
address_of: Callable[[Any], int] = intrinsic(_address)
_pointer32, _pointer64 = intrinsic(_pointer(types.int32)), intrinsic(_pointer(types.uint64))
_HASH_NUMBER = np.dtype(np.uint64).num


@kernel
def array32(address: int, count: int) -> DepthArray:
    """Read `count` int32 from an address on as an array: a loop over it is vectorised, one of `load32` is not."""
    return numba.carray(_pointer32(address), count)  # type: ignore[no-any-return]  # numba is untyped


@kernel
def array64(address: int, count: int) -> HashArray:
    """Read `count` uint64 from an address on as an array."""
    return numba.carray(_pointer64(address), count)  # type: ignore[no-any-return]


@kernel
def count_of(items: tuple[object, ...]) -> int:
    """Return how many items a tuple has that was lent."""
    return signed(load64(address_of(items) + _HEAD))


@kernel
def item_of(items: tuple[object, ...], i: int) -> int:
    """Return the address of item i of a tuple that was lent: tuples do not change, and hold on to their items."""
    return signed(load64(address_of(items) + _ITEMS + (i << 3)))


@kernel
def is_hashes(thing: int, kind: int) -> bool:
    """Is the object at this address a contiguous uint64 array of one dimension? `kind` is ``id(numpy.ndarray)``."""
    if signed(load64(thing + _TYPE)) != kind or load32(thing + _DIMENSIONS) != 1:
        return False
    dtype = signed(load64(thing + _DTYPE))
    order = (load32(dtype + _ORDER - 2) >> 16) & 255
    plain = load32(thing + _FLAGS) & _PLAIN
    return (
        plain == _PLAIN and load32(dtype + _NUMBER) == _HASH_NUMBER and order == 61
    )  # ord(as_dtype(kind.dtype).byteorder)


@kernel
def hashes_at(thing: int) -> HashArray:
    """Return the array that `is_hashes` found good."""
    return array64(signed(load64(thing + _DATA)), signed(load64(signed(load64(thing + _SHAPE)))))
