"""How does a gateway hear of its model servers? Their metrics over HTTP (`scrape`), their KV events over ZeroMQ (`kv_events`).

vLLM first, and whoever has metrics under names that `observability.engines` knows: SGLang, TensorRT-LLM, Triton.
"""
