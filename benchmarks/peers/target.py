#!/usr/bin/env python3
"""Times prefill and greedy decoding of a target beside transformers on PyTorch CPU and llama.cpp.

All load the same weights and use as many threads, and take turns in one run; see README.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def prompt_tokens(count, vocabulary):
    return [(i * 7919 + 13) % vocabulary for i in range(count)]


def transformers_worker(options):
    """Loads the folder once, measures once, prints one JSON object."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
    prompt = torch.tensor([prompt_tokens(options.prompt, model.config.vocab_size)])
    prefill = decode = float("inf")
    with torch.inference_mode():
        for _ in range(options.repeats):
            start = time.perf_counter()
            output = model(prompt, use_cache=True, logits_to_keep=1)
            prefill = min(prefill, time.perf_counter() - start)
            tokens = [output.logits[0, -1].argmax()]
            start = time.perf_counter()
            for _ in range(options.new_tokens):
                output = model(
                    tokens[-1].view(1, 1), past_key_values=output.past_key_values, use_cache=True
                )
                tokens.append(output.logits[0, -1].argmax())
            decode = min(decode, time.perf_counter() - start)
    print(
        json.dumps(
            {
                "prefill_tokens_per_s": options.prompt / prefill,
                "decode_tokens_per_s": options.new_tokens / decode,
                "tokens": [int(token) for token in tokens],
            }
        )
    )


def write_gguf(folder, path, matrices):
    """Writes a folder's weights for llama.cpp; `matrices` is the type of all matrices."""
    import gguf
    import numpy
    import torch
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    arch = config["model_type"]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")

    def halves_to_pairs(weight, count):
        # llama.cpp rotates neighbours in this architecture, Hugging Face's format the two halves.
        rows, columns = weight.shape
        return weight.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config["num_hidden_layers"])
    kind = gguf.GGMLQuantizationType[matrices]
    for name, tensor in tensors.items():
        weight = tensor.to(torch.float32).numpy()
        if arch == "llama" and name.endswith("q_proj.weight"):
            weight = halves_to_pairs(weight, heads)
        if arch == "llama" and name.endswith("k_proj.weight"):
            weight = halves_to_pairs(weight, kv_heads)
        to = names.get_name(name, try_suffixes=(".weight",))
        if weight.ndim == 1:
            writer.add_tensor(to, weight)
        else:
            data = gguf.quants.quantize(numpy.ascontiguousarray(weight), kind)
            writer.add_tensor(to, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_json(command, environment=None):
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout[result.stdout.index("[" if "llama-bench" in command[0] else "{") :])


def run_ours(options, *flags):
    common = ["--prompt", str(options.prompt), "--new-tokens", str(options.new_tokens)]
    return run_json(
        [str(options.benchmark), "--target-model-path", str(options.model), "--json", *common]
        + ["--threads", str(options.threads), "--repeats", str(options.repeats), *flags]
    )


def run_transformers(options, precision):
    own = ["--worker", "--model", str(options.model), "--precision", precision]
    sizes = ["--prompt", str(options.prompt), "--new-tokens", str(options.new_tokens)]
    threads = {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    return run_json(
        [options.python, __file__, *own, *sizes]
        + ["--threads", str(options.threads), "--repeats", str(options.repeats)],
        os.environ | threads,
    )


def run_llama(options, path):
    def best_rate(prompt, new_tokens, behind):
        rows = run_json(
            [str(options.llama_bench), "-m", str(path), "-o", "json", "-t", str(options.threads)]
            + ["-p", str(prompt), "-n", str(new_tokens), "-d", str(behind), "-r", str(options.repeats)]
        )
        return max(rows[0]["samples_ts"])

    return {
        "prefill_tokens_per_s": best_rate(options.prompt, 0, 0),
        "decode_tokens_per_s": best_rate(0, options.new_tokens, options.prompt),
    }


def compare(options):
    """Runs every program `rounds` times in turn and prints the best of each, and ratios."""
    programs = {}
    for flags in options.ours:
        programs["dflash " + flags] = lambda flags=flags: run_ours(options, *flags.split())
    for precision in options.torch:
        programs["transformers " + precision] = lambda p=precision: run_transformers(options, p)
    with tempfile.TemporaryDirectory() as scratch:
        if options.llama_bench:
            for kind in options.llama:
                path = Path(scratch) / f"{kind}.gguf"
                write_gguf(options.model, path, kind)
                programs["llama.cpp " + kind.lower()] = lambda path=path: run_llama(options, path)
        best, fractions = {}, {}
        for _ in range(options.rounds):
            for name, run in programs.items():
                result = run()
                mine = best.setdefault(name, result)
                if "decode_fraction_of_bandwidth" in result:
                    fractions.setdefault(name, []).append(result["decode_fraction_of_bandwidth"])
                if result["decode_tokens_per_s"] > mine["decode_tokens_per_s"]:
                    prefill = mine["prefill_tokens_per_s"]
                    mine = best[name] = result | {"prefill_tokens_per_s": prefill}
                key = "prefill_tokens_per_s"
                mine[key] = max(mine[key], result[key])
    for name, result in best.items():
        line = f"{name:44} prefill {result['prefill_tokens_per_s']:9.1f} tokens/s"
        line += f"  decode {result['decode_tokens_per_s']:8.1f} tokens/s"
        if name in fractions:
            line += f" ({100 * statistics.median(fractions[name]):.0f} % of memory bandwidth)"
        print(line)
    ours = [name for name in best if name.startswith("dflash")]
    for name in ours:
        for peer in best:
            if peer in ours:
                continue
            ratios = (best[name][key] / best[peer][key] for key in ("prefill_tokens_per_s", "decode_tokens_per_s"))
            print("{} / {}: prefill {:.2f}, decode {:.2f}".format(name, peer, *ratios))
    if options.json:
        print(json.dumps(best))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--benchmark", type=Path, help="our target_benchmark")
    parser.add_argument("--ours", action="append", help="flags of ours, such as '--weights int8'")
    parser.add_argument("--torch", action="append", choices=["fp32", "bf16"])
    parser.add_argument("--python", default=sys.executable, help="that has torch and transformers")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's program, if there is one")
    parser.add_argument("--llama", action="append", help="types of its matrices: BF16, Q8_0, F32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2, help="within a program's turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each program")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="fp32", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return transformers_worker(options)
    if not options.benchmark:
        parser.error("--benchmark is required")
    options.ours = options.ours or [""]
    options.torch = options.torch or ["fp32", "bf16"]
    options.llama = options.llama or ["BF16", "Q8_0"]
    compare(options)


if __name__ == "__main__":
    main()
