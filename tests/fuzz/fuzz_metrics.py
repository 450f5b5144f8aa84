"""Does any page of metrics do more than be read or be refused?

    python tests/fuzz/fuzz_metrics.py --seconds 60 [--seed 0]

A finding is any exception but `MetricsPageError`, and a reading with a value that its signal does not allow.
"""

import random
import sys
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from inferencesched import InferencePool
from inferencesched.errors import MetricsPageError
from inferencesched.observability import MetricsExtractor, parse_metric_spec
from tests.fuzz import texts
from tests.fuzz.fuzz_events import SHARED

VLLM = b"""# HELP vllm:num_requests_waiting Waiting.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a\\"b"} 3.0
vllm:num_requests_waiting{engine="1",model_name="x"} 4 1700000000000
vllm:num_requests_running{engine="0"} 2 # {trace_id="1"} 0.5
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:lora_requests_info{max_lora="2",running_lora_adapters="a, b",waiting_lora_adapters=""} 1.7e9
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1.0
vllm:prefix_cache_queries_total 100
vllm:prefix_cache_hits_total 40
process_start_time_seconds 1.7e9
"""
OTHERS = b"""sglang:num_queue_reqs 1
sglang:num_running_reqs 2
sglang:token_usage 0.5
sglang:cache_config_info{page_size="64",num_pages="11147"} 1
"""
TRITON = b"""nv_trt_llm_request_metrics{request_type="waiting"} 1
nv_trt_llm_request_metrics{request_type="scheduled"} 2
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction"} NaN
"""
SPECS = [b'name{a=b, c="d"}', b" name ", b"name{}"]
EXTRACTOR = MetricsExtractor()


def pages() -> list[bytes]:
    """Return the pages to begin from; with a real one where it lies beside the checkout."""
    found = [VLLM, OTHERS, TRITON, VLLM + OTHERS, *SPECS]
    for path in sorted((SHARED / "captures").glob("metrics_*.txt")):
        lines = path.read_bytes().splitlines(keepends=True)
        found.append(b"".join(line for line in lines if b"vllm:" in line and b"_bucket" not in line)[:8000])
    return found


def look(page: bytes, rng: random.Random) -> str:
    """Read a page, and put what it says into a pool."""
    with suppress(MetricsPageError):
        parse_metric_spec(page.decode("utf-8", "replace"))
    engine = rng.choice(("", "vllm", "sglang", "triton-tensorrt-llm", "nobody"))
    try:
        reading = EXTRACTOR.read(page, {"llm-d.ai/engine-type": engine} if engine else None)
    except MetricsPageError:
        return "refused"
    pool = InferencePool()
    pool.join("a")
    pool.observe("a", reading.columns, now=0.0, adapters=reading.adapters)
    assert reading.columns or reading.adapters
    return "read"


if __name__ == "__main__":
    sys.exit(texts.main(__doc__ or "", pages(), look))
