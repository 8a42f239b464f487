"""Measures MolmoE with random weights on a device: prefill, decoding, vision, memory, shares of the peaks.

    python benchmarks/molmoe.py                                   # full size, bfloat16, on the GPU
    python benchmarks/molmoe.py --config tiny --device cpu        # the small config of the tests, on any machine
    python benchmarks/molmoe.py --out benchmarks/results          # also writes a file named after the device

Times are medians of `--runs` timed runs after a warm-up: of CUDA events on a GPU, and of CPU time on one thread of a
CPU, which excludes other work of the machine. The peaks are measured in the same run with a large matrix product and a
copy (bytes read and written). With random weights tokens are routed evenly; a trained router is less even.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from tables import Row, markdown
from transformers import DynamicCache

from knobctl.data.plans import BlockPlan
from knobctl.precompute.models.molmoe.checkpoint import materialise
from knobctl.precompute.models.molmoe.config import MolmoeConfig
from knobctl.precompute.models.molmoe.experts import EXPERTS_IMPLEMENTATIONS
from knobctl.precompute.models.molmoe.graph_decoder import GraphDecoder
from knobctl.precompute.models.molmoe.kv_state import KeyValueState, with_room
from knobctl.precompute.models.molmoe.model import Molmoe

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "molmoe"
CONFIGS = {"full": FIXTURES / "config.MolmoE-1B-0924.json", "tiny": FIXTURES / "tiny" / "config.json"}
Key = TypeVar("Key", bound=Hashable)

TextTimes = dict[tuple[int, int, int], float]  # ms by (prompt tokens, k, blocks)

PROMPT_TOKENS = (300, 700, 1500)
CROPS = (1, 3, 8, 15)  # in addition to the global one: the limits of the tiers
STEPS = 16  # decoding steps of one timed run


@dataclass(frozen=True)
class Timer:
    """Times a function on a device, in ms."""

    device: torch.device
    runs: int

    def median_ms(self, run: Callable[[], object]) -> float:
        return self.medians_ms({None: run})[None]

    def medians_ms(self, candidates: dict[Key, Callable[[], object]]) -> dict[Key, float]:
        """Times the candidates in turn, so that other work of the machine affects all of them equally."""
        for run in (*candidates.values(), *candidates.values()):
            run()
        rounds = [{key: self._one(run) for key, run in candidates.items()} for _ in range(self.runs)]
        return {key: statistics.median(times[key] for times in rounds) for key in candidates}

    def _one(self, run: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
            start = clock()
            run()
            return 1e3 * (clock() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


@dataclass(frozen=True)
class Peaks:
    """The measured peaks of the device."""

    flops: float  # per second
    bytes: float  # per second, read and written


def measure_peaks(timer: Timer, dtype: torch.dtype) -> Peaks:
    side, entries = (8192, 1 << 29) if timer.device.type == "cuda" else (1024, 1 << 24)
    left, right = (torch.randn(side, side, device=timer.device, dtype=dtype) for _ in range(2))
    product_ms = timer.median_ms(lambda: left @ right)
    source = torch.zeros(entries, device=timer.device, dtype=dtype)
    target = torch.empty_like(source)
    copy_ms = timer.median_ms(lambda: target.copy_(source))
    moved = 2 * source.numel() * source.element_size()
    return Peaks(flops=2e3 * side**3 / product_ms, bytes=1e3 * moved / copy_ms)


def random_model(config: MolmoeConfig, dtype: torch.dtype, device: torch.device, experts: str) -> Molmoe:
    """Builds the model directly on its device, so that 14 GB are not copied from the host."""
    with torch.device("meta"):
        model = Molmoe(config, experts_implementation=experts)
    materialise(model, dtype, device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(0, 0.02, generator=generator)
        if "norm" in name:
            parameter.data.add_(1)
    return model.eval()


def make_plan(config: MolmoeConfig, position: int, top_k: int, num_blocks: int) -> BlockPlan:
    """Returns a plan: `position` blocks with the native k, `num_blocks - position` with `top_k`, the rest skipped."""
    later = (top_k,) * (num_blocks - position) + (0,) * (config.num_blocks - num_blocks)
    return (config.native_top_k,) * position + later


def prefill(model: Molmoe, hidden: torch.Tensor, plan: BlockPlan, cache: DynamicCache | None) -> torch.Tensor:
    rotary = model.position_embeddings(torch.arange(hidden.shape[1], device=hidden.device)[None])
    for index, top_k in enumerate(plan):
        if top_k:
            hidden = model.run_block(index, hidden, top_k=top_k, position_embeddings=rotary, cache=cache)
    return model.logits(hidden[:, -1:])


class EagerDecoder:
    """Decoding steps without graphs, as requests run them."""

    num_graphs = 0

    def __init__(self, model: Molmoe, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        self._states: dict[int, KeyValueState] = {}

    def load_prompt(self, keys: Mapping[int, torch.Tensor], values: Mapping[int, torch.Tensor]) -> None:
        room = self.capacity - keys[0].shape[2]
        self._states = {
            block: KeyValueState(with_room(keys[block], room), with_room(values[block], room)) for block in keys
        }

    def start(self, length: int, token: int) -> None:
        self._length = length
        self._token_11 = torch.full((1, 1), token, device=self.model.device)

    def step(self, plan: BlockPlan) -> None:
        hidden = self.model.word_embeddings(self._token_11)
        rotary = self.model.position_embeddings(torch.full((1, 1), self._length, device=self.model.device))
        for block, top_k in enumerate(plan):
            if top_k:
                state = self._states[block]
                state.length = self._length
                hidden = self.model.run_block(block, hidden, top_k=top_k, position_embeddings=rotary, cache=state)
        self._token_11 = self.model.logits(hidden).argmax(dim=-1)
        self._length += 1


Decoder = GraphDecoder | EagerDecoder


def prompt_of(model: Molmoe, tokens: int) -> torch.Tensor:
    return model.word_embeddings(torch.arange(tokens, device=model.device)[None] % model.config.vocab_size)


def decode_steps(decoder: Decoder, plan: BlockPlan, length: int) -> None:
    decoder.start(length, 0)
    for _ in range(STEPS):
        decoder.step(plan)


def encode_black_crops(model: Molmoe, num_crops: int) -> torch.Tensor:
    vision, device = model.config.vision, model.device
    pixels = torch.zeros(1, num_crops, vision.num_patches, vision.patch_width, device=device)
    return model.encode_images(pixels, torch.ones(1, num_crops, vision.num_patches, device=device))


def pass_flops(config: MolmoeConfig, plan: BlockPlan, tokens: int) -> float:
    """Returns the floating-point operations of a prefill: weights per token, causal attention, one row of logits."""
    used = [top_k for top_k in plan if top_k]
    d_model = config.d_model
    attention = d_model * (2 * d_model + 2 * config.num_kv_heads * config.head_width)
    per_token = sum(attention + config.num_experts * d_model + 3 * k * d_model * config.expert_width for k in used)
    return 2.0 * (tokens * per_token + len(used) * tokens**2 * d_model + d_model * config.embedding_size)


def step_bytes(config: MolmoeConfig, plan: BlockPlan, tokens: int, element: int) -> float:
    """Returns the bytes that a decoding step has to read: used weights, keys and values, the head."""
    used = [top_k for top_k in plan if top_k]
    d_model, key_width = config.d_model, config.num_kv_heads * config.head_width
    attention = d_model * (2 * d_model + 2 * key_width)
    weights = sum(attention + config.num_experts * d_model + 3 * k * d_model * config.expert_width for k in used)
    return element * (weights + len(used) * 2 * tokens * key_width + d_model * config.embedding_size)


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %"


def rises(name: str, values: Sequence[float]) -> Row:
    """Returns a row that says whether latency rises from each value of a knob to the next."""
    yes = all(low < high for low, high in pairwise(values))
    listed = " < ".join(f"{value:.3f}" for value in values)
    return "rises", {"does latency rise with": name, "from low to high, ms": listed, "rises": "yes" if yes else "NO"}


def corners_of(config: MolmoeConfig) -> list[tuple[int, int]]:
    """Returns the corners (k, blocks) of the knob grid: half and all of the native k, three quarters and all blocks."""
    blocks = config.num_blocks
    return [
        (k, n) for n in (blocks - blocks // 4, blocks) for k in (max(config.native_top_k // 2, 1), config.native_top_k)
    ]


@torch.inference_mode()
def measure(
    timer: Timer,
    config: MolmoeConfig,
    dtype: torch.dtype,
    *,
    experts: str = "auto",
    prompt_tokens: Sequence[int] = PROMPT_TOKENS,
    crops: Sequence[int] = CROPS,
) -> Iterator[Row]:
    """Yields rows as they are measured: peaks, text, vision, memory, rises."""
    device = timer.device
    peaks = measure_peaks(timer, dtype)
    yield (
        "peaks",
        {"matrix product, TFLOP/s": f"{peaks.flops / 1e12:.3g}", "copy, GB/s": f"{peaks.bytes / 1e9:.3g}"},
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = random_model(config, dtype, device, experts)
    kind = GraphDecoder if device.type == "cuda" else EagerDecoder
    decoder = kind(model, max(prompt_tokens) + STEPS)
    prefill_ms: TextTimes = {}
    step_ms: TextTimes = {}
    for tokens in prompt_tokens:
        measure_text(timer, model, decoder, tokens, prefill_ms, step_ms)
        for k, n in corners_of(config):
            yield text_row(config, (tokens, k, n), prefill_ms, step_ms, peaks, model.lm_head.weight.element_size())
    vision_ms = timer.medians_ms({count: partial(encode_black_crops, model, 1 + count) for count in crops})
    for count, time_ms in vision_ms.items():
        per_crop = f"{time_ms / (1 + count):.3f}"
        yield (
            "vision",
            {"crops, including the global one": 1 + count, "vision ms": f"{time_ms:.2f}", "ms per crop": per_crop},
        )
    yield memory_row(model, decoder)
    yield from rise_rows(model, timer, prefill_ms, step_ms, vision_ms)


def measure_text(
    timer: Timer, model: Molmoe, decoder: Decoder, tokens: int, prefill_ms: TextTimes, step_ms: TextTimes
) -> None:
    """Measures median ms of prefill and of one decoding step at every corner of the knob grid."""
    config = model.config
    hidden = prompt_of(model, tokens)
    plans = {(tokens, k, n): make_plan(config, 1, k, n) for k, n in corners_of(config)}
    cache = DynamicCache()
    prefill(model, hidden, make_plan(config, 1, config.native_top_k, config.num_blocks), cache)
    decoder.load_prompt(
        {block: layer.keys for block, layer in enumerate(cache.layers)},
        {block: layer.values for block, layer in enumerate(cache.layers)},
    )
    prefill_ms |= timer.medians_ms({key: partial(prefill, model, hidden, plan, None) for key, plan in plans.items()})
    steps_ms = timer.medians_ms({key: partial(decode_steps, decoder, plan, tokens) for key, plan in plans.items()})
    step_ms |= {key: time_ms / STEPS for key, time_ms in steps_ms.items()}


def text_row(
    config: MolmoeConfig,
    key: tuple[int, int, int],
    prefill_ms: TextTimes,
    step_ms: TextTimes,
    peaks: Peaks,
    element: int,
) -> Row:
    tokens, k, n = key
    plan = make_plan(config, 1, k, n)
    flops_s = 1e3 * pass_flops(config, plan, tokens) / prefill_ms[key]
    bytes_s = 1e3 * step_bytes(config, plan, tokens, element) / step_ms[key]
    return (
        "text",
        {
            "prompt tokens": tokens,
            "k": k,
            "blocks": n,
            "prefill ms": f"{prefill_ms[key]:.2f}",
            "share of matrix peak": share(flops_s, peaks.flops),
            "decode ms/token": f"{step_ms[key]:.3f}",
            "share of bandwidth peak": share(bytes_s, peaks.bytes),
        },
    )


def memory_row(model: Molmoe, decoder: Decoder) -> Row:
    """Returns the peak memory so far: allocated memory on a GPU, resident memory including Python on a CPU."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if model.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(model.device)
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (
        "memory",
        {
            "parameters": f"{parameters:,}",
            "weights GiB": f"{parameters * model.lm_head.weight.element_size() / 2**30:.2f}",
            "peak GiB": f"{peak / 2**30:.2f}",
            "CUDA graphs": decoder.num_graphs,
        },
    )


def rise_rows(
    model: Molmoe, timer: Timer, prefill_ms: TextTimes, step_ms: TextTimes, vision_ms: dict[int, float]
) -> Iterator[Row]:
    """Yields whether latency rises with each knob while the other knobs are at their highest values."""
    config = model.config
    lengths = sorted({tokens for tokens, _, _ in prefill_ms})
    (low_k, low_n), (native, blocks) = corners_of(config)[0], corners_of(config)[-1]
    longest = prompt_of(model, lengths[-1])
    by_position = timer.medians_ms(
        {
            position: partial(prefill, model, longest, make_plan(config, position, low_k, blocks), None)
            for position in (1, min(5, blocks - 1))
        }
    )
    yield rises("tier, as prompt tokens: prefill", [prefill_ms[tokens, native, blocks] for tokens in lengths])
    yield rises("tier, as crops: vision", list(vision_ms.values()))
    yield rises(f"insertion position (k {low_k}): prefill at {lengths[-1]}", list(by_position.values()))
    for name, times_ms in (("prefill", prefill_ms), ("decode", step_ms)):
        for tokens in lengths:
            yield rises(f"k: {name} at {tokens}", [times_ms[tokens, k, blocks] for k in (low_k, native)])
            yield rises(f"blocks: {name} at {tokens}", [times_ms[tokens, native, n] for n in (low_n, blocks)])


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def device_slug(device: torch.device) -> str:
    """Returns the device's name for file names."""
    return "cpu" if device.type == "cpu" else device_name(device).lower().replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="full", help="full, tiny, or the path of a config.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--experts", choices=EXPERTS_IMPLEMENTATIONS, default="auto")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=list(PROMPT_TOKENS))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads of the CPU")
    parser.add_argument("--out", type=Path, help="folder for the tables")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device: try --config tiny --device cpu")
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    title = f"# MolmoE ({options.config}) on {device_name(device)}, torch {torch.__version__}"
    how = f"{dtype}, experts `{options.experts}`, medians of {options.runs} runs."
    rows = measure(
        Timer(device, options.runs),
        MolmoeConfig.from_json(CONFIGS.get(options.config, options.config)),
        dtype,
        experts=options.experts,
        prompt_tokens=sorted(set(options.prompt_tokens)),
    )
    text = "\n".join([title, "", how, "", markdown(list(rows))])
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"molmoe-{Path(options.config).stem}-{device_slug(device)}.md").write_text(
            text, encoding="utf-8"
        )


if __name__ == "__main__":
    main()
