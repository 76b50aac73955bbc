"""Statistics of many tensors: the reference against float64, the kernel against the reference, and the choice.

The kernel runs in Triton's interpreter where Triton is installed, and on a GPU where there is one.
"""

import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steadygrad.probe import kernels
from steadygrad.probe.chosen_kernel import (
    MAX_CALLS,
    PAIRS,
    WARM_UP,
    Chosen,
    fastest_norms,
    grouped_norms,
    keeps_candidate,
)
from steadygrad.probe.kernels import BLOCK, CHUNK, can_run, chunk_table, statistics, torch_statistics

ROOT = Path(__file__).parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
in_interpreter = pytest.mark.skipif(
    not INTERPRETED or find_spec("triton") is None,
    reason="run by test_kernel_in_the_interpreter, with Triton",
)
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAST = torch.channels_last
KINDS = {
    "one": lambda: [torch.randn(1)],
    "empty": lambda: [torch.zeros(0, 5)],
    "empty_between": lambda: [torch.randn(5), torch.zeros(0), torch.zeros(3, 0), torch.randn(7)],
    "odd": lambda: [torch.randn(n) * 3 for n in (7, 2047, 2048, 2049)],
    "chunks": lambda: [torch.randn(n) for n in (CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17)],
    "many": lambda: [torch.randn(3, 1 + i % 5) for i in range(70)],
    "nan": lambda: [torch.tensor([1.0, math.nan, 2.0]), torch.ones(4)],
    "infinities": lambda: [torch.tensor([math.inf, -3.0, -math.inf, math.nan]), torch.full((3,), -math.inf)],
    "nan_in_the_last_entries": lambda: [torch.cat([torch.ones(CHUNK + 5), torch.full((2,), math.nan)])],
    "nan_in_a_whole_block": lambda: [
        torch.ones(3 * BLOCK).index_fill(0, torch.tensor([0, BLOCK - 1, BLOCK, 2 * BLOCK + 9]), math.nan),
        torch.ones(3 * BLOCK).index_fill(0, torch.tensor([7]), -math.inf),
    ],
    "zero": lambda: [torch.zeros(9)],
    "scalar": lambda: [torch.tensor(-2.5)],
    "transposed": lambda: [torch.randn(40, 60).T, torch.randn(2, 3, 4, 5).contiguous(memory_format=LAST)],
}
VIEWS = {
    "strided": lambda x: [x[3:5000:3], x[:3, None].expand(3, 50), x[:81].view(9, 9)[:, 2:5]],
    "unaligned": lambda x: [x[1:5002], x[3:]],
}


def made(kind, dtype, device="cpu"):
    torch.manual_seed(0)
    if kind in VIEWS:
        return VIEWS[kind](torch.randn(70_000).to(device, dtype))
    return [tensor.to(device, dtype) for tensor in KINDS[kind]()]


def in_double(tensors):
    """The slow way: (square sum, largest, number not finite) of each, in Python floats."""
    found = []
    for tensor in tensors:
        values = tensor.double().flatten()
        kept = values[values.isfinite()]
        largest = float(kept.abs().max()) if kept.numel() else 0.0
        found.append((float(kept.square().sum()), largest, values.numel() - kept.numel()))
    return found


def assert_agree(found, tensors):
    wanted = in_double(tensors)
    assert found.square_sums.tolist() == pytest.approx([w[0] for w in wanted], rel=2e-6)
    assert found.max_abs.tolist() == [w[1] for w in wanted]
    assert found.num_nonfinite.tolist() == [w[2] for w in wanted]
    assert [column.dtype for column in found] == [torch.float32, torch.float32, torch.int64]
    assert all(column.shape == (len(tensors),) for column in found)
    norms = [math.inf if w[2] else math.sqrt(w[0]) for w in wanted]
    assert found.norms.tolist() == pytest.approx(norms, rel=2e-6)


def assert_overflows_aloud(way, device="cpu"):
    """Finite entries whose squares are not: inf, and none counted. So is a sum that overflows only in the end."""
    sums = torch.full((CHUNK + 1,), 2e17, device=device)
    found = way([torch.full((3,), 1e30, device=device), torch.ones(2, device=device), sums])
    assert found.square_sums.tolist() == [math.inf, 2.0, math.inf]
    assert found.max_abs.tolist() == [pytest.approx(1e30), 1.0, pytest.approx(2e17)]
    assert found.num_nonfinite.tolist() == [0, 0, 0] and found.norms[0] == math.inf


# The reference.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [*KINDS, *VIEWS])
def test_reference_against_float64(kind, dtype):
    tensors = made(kind, dtype)
    assert_agree(torch_statistics(tensors), tensors)


def test_reference_overflows_aloud():
    assert_overflows_aloud(torch_statistics)


def test_reference_is_exact_on_a_large_tensor():
    """Where a float32 norm on a CPU, which adds one after the other, is not."""
    torch.manual_seed(0)
    values = torch.randn(4_000_000)
    assert_agree(torch_statistics([values]), [values])


def test_reference_leaves_its_inputs_alone_and_takes_those_with_a_graph():
    leaf = torch.nn.Parameter(torch.tensor([1.0, math.nan]))
    with_graph = leaf * 2
    found = torch_statistics([leaf, with_graph])
    assert found.square_sums.tolist() == [1.0, 4.0] and not found.square_sums.requires_grad
    assert leaf._version == 0 and with_graph._version == 0


@pytest.mark.parametrize(
    "way",
    [torch_statistics, statistics, Chosen(torch_statistics, statistics)],
    ids=["reference", "kernel", "chosen"],
)
def test_nothing_at_all(way):
    assert [column.shape for column in way([])] == [(0,), (0,), (0,)]


MIXED = {
    "dtypes": ([torch.ones(1), torch.ones(1).half()], "one dtype and device"),
    "float64": ([torch.ones(1, dtype=torch.float64)], "float32, bfloat16 or float16"),
    "integers": ([torch.ones(1, dtype=torch.int64)], "float32, bfloat16 or float16"),
    "meta": ([torch.ones(1, device="meta")], "on meta"),
    "devices": ([torch.ones(1), torch.ones(1, device="meta")], "one dtype and device"),
    "sparse": ([torch.ones(2).to_sparse()], "must be dense"),
}


@pytest.mark.parametrize("name", MIXED)
def test_others_are_refused(name):
    tensors, why = MIXED[name]
    for way in (torch_statistics, statistics):
        with pytest.raises(ValueError, match=why):
            way(tensors)


def test_subclasses_are_refused_and_do_not_reach_the_kernel():
    class Wrapped(torch.Tensor):
        pass

    with pytest.raises(ValueError, match="Wrapped"):
        torch_statistics([torch.ones(2).as_subclass(Wrapped)])


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes them")
def test_kernel_refuses_tensors_of_a_cpu():
    with pytest.raises(ValueError, match="use torch_statistics"):
        statistics([torch.ones(2)])


# The table.


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 9))
def test_every_entry_is_in_just_one_chunk(numels, chunk):
    table = chunk_table(numels, chunk)
    read = []
    for number, owner in enumerate(table.owners.tolist()):
        first = (number - table.starts[owner]) * chunk
        length = min(table.numels[owner] - first, chunk)
        assert 0 < length <= chunk
        read += [(owner, int(first) + i) for i in range(length)]
    assert read == [(owner, i) for owner, numel in enumerate(numels) for i in range(numel)]
    assert table.starts[-1] == len(table.owners)


def test_sizes_beyond_32_bits():
    table = chunk_table([2**33 + 1])
    assert table.numels[0] == 2**33 + 1 and len(table.owners) == 2**17 + 1


def test_addresses_are_sent_only_when_they_change():
    table = kernels._Table((4, 4), torch.device("cpu"))
    sent, aligned = table.addresses((64, 4096))
    assert sent.tolist() == [64, 4096] and aligned
    assert table.addresses((64, 4096))[0] is sent
    moved, aligned = table.addresses((64, 4100))
    assert moved.tolist() == [64, 4100] and not aligned


def test_tables_of_ever_new_sizes_do_not_pile_up():
    for n in range(3 * kernels.TABLES):
        kernels._on_device([torch.ones(n + 1)], torch.device("cpu"))
    assert 0 < len(kernels._tables) <= kernels.TABLES


def test_what_is_read_where_it_lies():
    """Dense in whatever order: then the entries are neighbours in memory, beginning at data_ptr."""
    dense = [torch.ones(2, 3, 4), torch.ones(2, 3, 4).permute(2, 0, 1), torch.ones(0, 3).T, torch.tensor(1.0)]
    dense += [torch.ones(2, 3, 4, 5).contiguous(memory_format=LAST), torch.ones(3, 1, 2).transpose(0, 2)]
    others = [
        torch.ones(4, 3)[:, :2],
        torch.ones(9)[::2],
        torch.ones(3, 1).expand(3, 2),
        torch.ones(4, 4)[::2].T,
    ]
    assert [kernels._is_dense(t) for t in dense] == [True] * len(dense)
    assert [kernels._is_dense(t) for t in others] == [False] * len(others)


# The choice.


class Clock:
    """Stopwatches that show given times; only the first ``done`` of them, if that is set."""

    def __init__(self, times):
        self.times = iter(times)
        self.done = math.inf
        self.made = 0

    def __call__(self, device):
        clock, number, time = self, self.made, next(self.times)
        self.made += 1

        class Watch:
            def start(self): ...
            def stop(self): ...
            def read(self):
                return time if number < clock.done else None

        return Watch()


def two_ways(clock):
    taken = []

    def reference(tensors):
        taken.append("reference")
        return len(tensors)

    def candidate(tensors):
        taken.append("candidate")
        return len(tensors)

    return taken, Chosen(reference, candidate, can_run=lambda tensors: True, stopwatch=clock)


TRIAL = 2 * (WARM_UP + PAIRS)


def in_turn(pairs):
    """Times of the calls, in the order in which the ways take turns: r c, c r, r c ..."""
    return [time for i, pair in enumerate(pairs) for time in (pair if i % 2 == 0 else pair[::-1])]


FASTER, SLOWER = in_turn([(2.0, 1.0)] * (TRIAL // 2)), in_turn([(1.0, 2.0)] * (TRIAL // 2))


def test_decision():
    assert keeps_candidate([(2.0, 1.0)] * 3)
    assert not keeps_candidate([(1.0, 2.0)] * 3)
    assert not keeps_candidate([(1.0, 0.97)] * 5), "a tie"
    assert not keeps_candidate([])
    assert keeps_candidate([(2.0, 1.0), (2.0, 1.0), (2.0, 50.0)]), "one call was disturbed"
    assert not keeps_candidate([(1.0, 2.0), (1.0, 2.0), (50.0, 1.0)])
    assert not keeps_candidate([(1.0, 0.0), (math.nan, 1.0), (math.inf, 1.0), (0.0, 0.0)]), "no measurement"


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1), st.sampled_from([0.5, 8.0])
)
def test_decision_depends_on_no_unit_and_no_order(pairs, unit):
    scaled = [(unit * a, unit * b) for a, b in reversed(pairs)]
    assert keeps_candidate(pairs) == keeps_candidate(scaled)


@pytest.mark.parametrize("times, wanted", [(FASTER, "candidate"), (SLOWER, "reference")])
def test_faster_way_is_kept(times, wanted):
    clock = Clock(times)
    taken, chosen = two_ways(clock)
    for _ in range(TRIAL + 9):
        assert chosen([torch.ones(2), torch.ones(3)]) == 2
    assert taken[:4] == ["reference", "candidate", "candidate", "reference"]
    assert taken[:TRIAL].count("candidate") == TRIAL // 2
    assert taken[TRIAL:] == [wanted] * 9 and clock.made == TRIAL
    assert list(chosen.choices().values()) == [wanted == "candidate"]


def test_calls_not_done_yet_are_not_waited_for():
    clock = Clock(FASTER + FASTER)
    taken, chosen = two_ways(clock)
    for clock.done in [0] * TRIAL + [0, 1, TRIAL - 1]:
        chosen([torch.ones(2)])
    assert list(chosen.choices().values()) == [None]
    clock.done = TRIAL
    chosen([torch.ones(2)])
    assert list(chosen.choices().values()) == [True]


def test_times_that_never_come_leave_the_reference():
    clock = Clock([1.0] * MAX_CALLS)
    clock.done = 0
    taken, chosen = two_ways(clock)
    for _ in range(MAX_CALLS + 3):
        chosen([torch.ones(2)])
    assert taken[MAX_CALLS:] == ["reference"] * 3 and clock.made == MAX_CALLS


def test_the_first_calls_do_not_count():
    """In which the kernel is compiled. Of the others, two of five are disturbed."""
    pairs = [(2.0, 900.0)] * WARM_UP + [(2.0, 9.0), (2.0, 1.0), (2.0, 9.0), (2.0, 1.0), (2.0, 1.0)]
    taken, chosen = two_ways(Clock(in_turn(pairs)))
    for _ in range(TRIAL + 1):
        chosen([torch.ones(2)])
    assert taken[-1] == "candidate"


def test_two_models_that_take_turns_are_told_apart():
    """The gradients of a generator and a discriminator: one call each, in turn."""
    times = [time for pair in zip(FASTER, SLOWER, strict=True) for time in pair]
    taken, chosen = two_ways(Clock(times))
    small, large = [torch.ones(2)], [torch.ones(50), torch.ones(3)]
    for _ in range(TRIAL + 1):
        chosen(small)
        chosen(large)
    assert taken[-2:] == ["candidate", "reference"]
    assert list(chosen.choices().values()) == [True, False]


def test_a_candidate_that_fails_is_left_at_once():
    failed = []

    def fails(tensors):
        failed.append(1)
        raise RuntimeError("no compiler")

    chosen = Chosen(len, fails, can_run=lambda tensors: True, stopwatch=Clock([1.0] * 99))
    assert [chosen([torch.ones(2)]) for _ in range(5)] == [1] * 5
    assert failed == [1] and str(chosen.trouble) == "no compiler"


def test_an_error_of_the_reference_reaches_the_caller():
    _, chosen = two_ways(Clock([1.0]))
    chosen._ways = (lambda tensors: tensors[7], len)
    with pytest.raises(IndexError):
        chosen([torch.ones(2)])


def test_deterministic_algorithms_take_the_reference():
    clock = Clock(FASTER)
    taken, chosen = two_ways(clock)
    torch._C._set_deterministic_algorithms(
        True
    )  # what is called in public imports the compiler first: seconds
    try:
        for _ in range(5):
            chosen([torch.ones(2)])
    finally:
        torch._C._set_deterministic_algorithms(False)
    assert taken == ["reference"] * 5 and clock.made == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_cpu_it_is_always_torch(dtype):
    tensors, chosen = made("odd", dtype), Chosen(torch_statistics, statistics)
    for _ in range(TRIAL + 2):
        found = chosen(tensors)
    assert all(torch.equal(a, b) for a, b in zip(found, torch_statistics(tensors), strict=True))
    assert torch.equal(fastest_norms(tensors), grouped_norms(tensors))
    assert chosen.choices() == {} and chosen.trouble is None
    assert not can_run(tensors) and (INTERPRETED or kernels.tl is None), "Triton was imported"


# The kernel, in Triton's interpreter.


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="it is on")
def test_kernel_in_the_interpreter():
    """Triton reads the switch when it is imported: a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:xdist", __file__, "-k", "interpreted"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout + done.stderr


@in_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [*KINDS, *VIEWS])
def test_interpreted_kernel_against_both(kind, dtype):
    tensors = made(kind, dtype)
    before = [tensor.clone() for tensor in tensors]
    found = statistics(tensors)
    assert_agree(found, tensors)
    reference = torch_statistics(tensors)
    assert torch.equal(found.max_abs, reference.max_abs)
    assert torch.equal(found.num_nonfinite, reference.num_nonfinite)
    assert all(
        torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) and a._version == 0
        for a, b in zip(tensors, before, strict=True)
    )


@in_interpreter
@pytest.mark.filterwarnings("ignore:overflow encountered")  # numpy's, by which the interpreter computes
def test_interpreted_kernel_overflows_aloud():
    assert_overflows_aloud(statistics)


@in_interpreter
def test_interpreted_kernel_reads_what_is_there_now():
    """Other gradients of the same sizes, as after zero_grad(set_to_none=True); and new values in the same place."""
    torch.manual_seed(0)
    kept = []
    for _ in range(3):
        kept.append([torch.randn(100), torch.randn(30, 30)])
        assert_agree(statistics(kept[-1]), kept[-1])
    kept[0][0].mul_(3.0)
    assert_agree(statistics(kept[0]), kept[0])
    first, again = statistics(kept[1]), statistics(kept[1])
    assert torch.equal(first.square_sums, again.square_sums)


@in_interpreter
def test_interpreted_kernel_adds_up_more_chunks_than_it_reads_at_a_time():
    """2,100 chunks of one tensor, between others; their sums are put there by hand, for the interpreter is slow."""
    _, add_chunks = kernels._kernels()
    numels = [5, 2100 * CHUNK - 9, 0, CHUNK]
    table = kernels._Table(tuple(numels), torch.device("cpu"))
    torch.manual_seed(0)
    partial = torch.stack([torch.rand(2102), torch.rand(2102), torch.randint(0, CHUNK + 1, (2102,)).float()])
    out = torch.empty(4), torch.empty(4), torch.empty(4, dtype=torch.int64)
    add_chunks[(4,)](table.layout, partial, *out, 4, table.num_chunks, BLOCK=1024)
    for i, (a, b) in enumerate([(0, 1), (1, 2101), (2101, 2101), (2101, 2102)]):
        part = partial[:, a:b].double()
        assert float(out[0][i]) == pytest.approx(float(part[0].sum()), rel=1e-6)
        assert float(out[1][i]) == (float(part[1].max()) if b > a else 0.0)
        assert int(out[2][i]) == int(part[2].sum())


COMPILED = """
import sys
from steadygrad.probe import kernels
read_chunk, add_chunks = kernels._kernels()
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

def made(kernel, constants):
    pointers = dict(addresses="*i64", layout="*i64", num_nonfinite="*i64", num_tensors="i32", num_chunks="i32")
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "*fp32") for name in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constants)
    return compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": True}).asm

for element in (kernels.tl.float32, kernels.tl.bfloat16, kernels.tl.float16):
    for aligned in (True, False):
        asm = made(read_chunk, dict(ELEMENT=element, ALIGNED=aligned, CHUNK=kernels.CHUNK, BLOCK=kernels.BLOCK))
        assert asm["cubin"] and ("ld.global.v4" in asm["ptx"]) == aligned, (element, aligned)
assert made(add_chunks, dict(BLOCK=1024))["cubin"]
"""


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="compiles nothing")
def test_kernel_compiles_without_a_gpu_and_reads_16_bytes_at_a_time(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-W", "error", "-c", COMPILED], check=True, env=environment, cwd=ROOT)


# On a GPU: never run so far.


class TestOnAGpu:
    pytestmark = [*gpu, needs_triton]

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("kind", [*KINDS, *VIEWS])
    def test_kernel_against_the_reference(self, kind, dtype):
        tensors = made(kind, dtype, "cuda")
        found = statistics(tensors)
        assert_agree(found, tensors)
        reference = torch_statistics(tensors)
        assert torch.equal(found.max_abs, reference.max_abs)
        assert torch.equal(found.num_nonfinite, reference.num_nonfinite)
        assert torch.allclose(found.square_sums, reference.square_sums, rtol=1e-5)

    def test_kernel_overflows_aloud(self):
        assert_overflows_aloud(statistics, "cuda")

    def test_nothing_is_waited_for(self):
        statistics([torch.randn(5000, device="cuda")])  # compiles
        kept = [torch.randn(5000, device="cuda") for _ in range(TRIAL + 2)]
        torch.cuda.synchronize()
        chosen = Chosen(torch_statistics, statistics)
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = [statistics([values]) for values in kept]
            found += [chosen([values]) for values in kept]
            norms = [fastest_norms([values]) for values in kept]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for values, each, norm in zip(kept + kept, found, norms + norms, strict=True):
            assert_agree(each, [values])
            assert float(norm) == pytest.approx(float(values.double().norm()), rel=1e-5)

    def test_a_choice_is_made(self):
        chosen = Chosen(torch_statistics, statistics)
        tensors = [torch.randn(5000, device="cuda") for _ in range(50)]
        for _ in range(TRIAL):
            chosen(tensors)
        torch.cuda.synchronize()
        assert_agree(chosen(tensors), tensors)
        assert chosen.trouble is None and None not in chosen.choices().values()

    def test_on_a_stream_of_its_own(self):
        values = [torch.randn(5000, device="cuda")]
        statistics(values)
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            found = statistics(values)
        torch.cuda.synchronize()
        assert_agree(found, values)

    def test_not_while_a_graph_is_captured(self):
        values = [torch.randn(5000, device="cuda")]
        assert can_run(values)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            inside = can_run(values)
        assert not inside
