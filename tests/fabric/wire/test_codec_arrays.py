"""Arrays and tensors: their numbers, exactly, with no copy that is not needed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fabric.wire.codec import CodecError, NotTransportable, NoTypes, decode, encode

DTYPES = st.one_of(
    hnp.scalar_dtypes(),
    hnp.datetime64_dtypes(),
    hnp.timedelta64_dtypes(),
    hnp.byte_string_dtypes(),
    hnp.unicode_string_dtypes(),
    hnp.array_dtypes(hnp.scalar_dtypes(), allow_subarrays=True),
)
ARRAYS = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4)))


def there_and_back(value):
    return decode(*encode(value), types=NoTypes())


def assert_same(back, array):
    assert type(back) is np.ndarray
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable


@settings(deadline=None)
@given(ARRAYS)
def test_an_array_comes_back_bit_for_bit(array):
    assert_same(there_and_back(array), array)


@settings(deadline=None)
@given(ARRAYS, st.data())
def test_a_view_of_any_strides_comes_back(array, data):
    axes = data.draw(st.permutations(range(array.ndim)))
    view = (
        array.transpose(axes)[(slice(None, None, -1),) * array.ndim][..., :: data.draw(st.sampled_from([1, 2]))]
        if (array.ndim)
        else array
    )
    assert_same(there_and_back(view), view)


@settings(deadline=None)
@given(hnp.arrays(hnp.scalar_dtypes() | hnp.array_dtypes(), ()))
def test_a_scalar_comes_back_with_its_type(array):
    back = there_and_back([array[()]])[0]
    assert type(back) is type(array[()])
    assert back.dtype == array[()].dtype
    assert back.tobytes() == array[()].tobytes()


def test_fortran_order_is_kept_and_costs_no_copy():
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    encoded = encode(array)
    assert np.shares_memory(np.frombuffer(encoded.buffers[0]), array)
    back = decode(*encoded, types=NoTypes())
    assert back.flags.f_contiguous
    assert not back.flags.c_contiguous


def test_a_contiguous_array_is_not_copied_on_either_side():
    array = np.arange(1000)
    header, buffers = encode({"a": array})
    assert np.shares_memory(np.frombuffer(buffers[0], array.dtype), array)
    received = bytearray(buffers[0])
    assert np.shares_memory(decode(header, [received], types=NoTypes())["a"], np.frombuffer(received))


def test_a_misaligned_or_read_only_buffer_still_gives_a_usable_array():
    header, buffers = encode(np.arange(10))
    for received in (bytes(buffers[0]), memoryview(bytearray(81))[1:]):
        back = decode(header, [received], types=NoTypes())
        assert back.flags.aligned
        assert back.flags.writeable


def test_the_first_buffer_is_aligned_when_joined():
    for size in range(70):
        assert len(encode({"x" * size: np.zeros(1)}).header) % 64 == 0


def test_a_memory_map_travels_as_an_array(tmp_path):
    mapped = np.memmap(tmp_path / "m", np.int16, "w+", shape=(2, 2))
    mapped[:] = 7
    assert_same(there_and_back(mapped), np.full((2, 2), 7, np.int16))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([object()]), "ndarray is not transportable; it has object dtype"),
        (np.zeros(1, [("a", "O")]), "ndarray is not transportable; it has object dtype"),
        (np.ma.masked_array([1], [True]), r"MaskedArray is not transportable; return numpy\.asarray\(…\) of it"),
        (np.rec.array([(1,)]), "recarray is not transportable"),
        (torch.eye(2).to_sparse(), "Tensor is not transportable; only dense tensors travel"),
        (torch.empty(2, device="meta"), "Tensor is not transportable; only dense tensors travel"),
    ],
)
def test_what_is_more_than_numbers_is_refused(value, message):
    with pytest.raises(NotTransportable, match=rf'^result\["a"\]: {message}'):
        encode({"a": value})


@pytest.mark.parametrize(
    "tensor",
    [
        *(torch.arange(6.0).reshape(2, 3), torch.tensor(3), torch.zeros(0, 2), torch.eye(3).t()[::2]),
        *(torch.ones(3, dtype=torch.bfloat16), torch.ones(2, dtype=torch.complex64).conj(), torch.tensor([True])),
    ],
)
def test_a_tensor_comes_back_with_its_numbers(tensor):
    back = there_and_back((tensor,))[0]
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)
    back += True


def test_a_parameter_arrives_as_a_plain_tensor_without_gradient():
    back = there_and_back(torch.nn.Linear(2, 2).state_dict(keep_vars=False) and torch.nn.Parameter(torch.ones(2)))
    assert type(back) is torch.Tensor
    assert not back.requires_grad


def test_the_weights_of_a_model_come_back_as_they_were_returned():
    model = torch.nn.Linear(3, 2)
    back = there_and_back(model.state_dict())
    assert all(torch.equal(back[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("change", [(b"\xa3<i8", b"\xa3<i4"), (b"\x91\x0a", b"\x91\x0b"), (b"\xa1C", b"\xa1K")])
def test_an_array_whose_description_does_not_fit_its_buffer_is_refused(change):
    header, buffers = encode(np.arange(10))
    assert change[0] in header
    with pytest.raises(CodecError):
        decode(header.replace(*change), buffers, types=NoTypes())


@pytest.mark.parametrize("dtype", ["|O8", "O", "object", "i4,O", "<i4\n", "(2,)O"])
def test_a_dtype_that_could_hold_objects_is_refused(dtype):
    header, buffers = encode(np.arange(10))
    forged = header.replace(b"\xa3<i8", bytes([0xA0 + len(dtype)]) + dtype.encode()).rstrip(b"\xc0")
    with pytest.raises(CodecError, match=r"is not a dtype|malformed"):
        decode(forged, buffers, types=NoTypes())


def test_a_missing_library_is_named(monkeypatch):
    header, buffers = encode(torch.ones(2))
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(CodecError, match="needs torch, which is not installed here: pip install torch"):
        decode(header, buffers, types=NoTypes())
