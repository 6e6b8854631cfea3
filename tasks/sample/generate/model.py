"""Train the sample's tokenizer and tiny language model: ``python -m tasks.sample.generate.model``.

It takes about ten minutes on one CPU core.
"""

from __future__ import annotations

import json
import logging
import math
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.sample.generate.corpus import Piece, pieces
from tasks.sample.generate.data import HERE
from tasks.sample.generate.lexicon import LISTS, SYNONYMS
from tasks.sample.generate.prose import PROSE

SEED = 20
VOCABULARY = 1500  # number of frequent words; with the lexicon, characters and bytes there are about 2,300 tokens
SPECIAL = ("<unk>", "</s>", "<pad>")
TOKENS = 1300  # maximum number of tokens in a step, with padding
POOL = 1000  # number of pieces that are sorted by length, to reduce padding
STEPS = 2400
MUON_LR, ADAM_LR, WARMUP = 0.03, 8e-3, 60
QUESTION_SHARE = 0.25  # the share of the questions' tokens in the loss, which includes all tokens of the answers
LOG = logging.getLogger(__name__)


def sample_text(*splits: str) -> str:
    """Prompts and targets of some splits of both suites, as one string."""
    files = [HERE / "promptcblue" / f"{s}.json" for s in splits] + [HERE / "firefly" / f"{s}.jsonl" for s in splits]
    rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    return "\n".join(row["input"] + row["target"] for row in rows)


def make_pieces(seed: int) -> Iterator[Piece]:
    """The endless training text, which includes exercises in copying the sample's characters and words."""
    letters = sorted(set(sample_text("train", "dev", "test")) - {"\n"})
    return pieces(random.Random(seed), [*letters, *prose_words(), *listed_words()], sample_text("dev", "test"))


def listed_words() -> list[str]:
    """The words of the medical lexicon."""
    return sorted({word for kind in LISTS.values() for word in kind} | set(SYNONYMS))


@cache
def prose_words() -> list[str]:
    """The words of the plain sentences, as jieba cuts them."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    return sorted({word for text in PROSE for word in jieba.cut(text, HMM=False) if 1 < len(word) <= 4})


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A unigram tokenizer: frequent words, otherwise characters; unknown characters are encoded as bytes."""
    import jieba

    listed = listed_words()
    for word in listed:
        jieba.add_word(word, 10_000)
    texts = [p.question + p.cue + p.answer for p in islice(make_pieces(SEED + 1), 20_000)]
    counts = Counter(word for text in texts for word in jieba.cut(text, HMM=False) if len(word) <= 6)
    counts.update(dict.fromkeys(sample_text("train", "dev", "test"), 1))
    kept = [w for w, _ in counts.most_common(VOCABULARY)] + [w for w in counts if len(w) == 1 or w in listed]
    kept += prose_words()
    total = sum(counts.values())
    scored = {word: math.log(max(counts[word], 1) / total) for word in dict.fromkeys(kept)}
    scored |= {f"<0x{byte:02X}>": -30.0 for byte in range(256)}
    special = [(name, 0.0) for name in SPECIAL]
    raw = Tokenizer(models.Unigram([*special, *scored.items()], unk_id=0, byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\p{P}\p{S}]"), "isolated")
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    raw.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[2],
        clean_up_tokenization_spaces=False, model_max_length=1024,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Batch:
    """ids: (n, length), padded on the right. scored: (n, length), whether a token is part of the loss."""

    ids: torch.Tensor
    scored: torch.Tensor


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Batch]:
    """Endless batches of pieces of similar length, each with at most TOKENS tokens including padding."""
    stream, order = make_pieces(seed), random.Random(seed)
    while True:
        pool = []
        for piece in islice(stream, POOL):
            question = tokenizer.encode(piece.question + piece.cue, add_special_tokens=False)
            answer = [*tokenizer.encode(piece.answer, add_special_tokens=False), tokenizer.eos_token_id]
            asked = [order.random() < QUESTION_SHARE for _ in question]
            pool.append((question + answer, asked + [True] * len(answer)))
        pool.sort(key=lambda piece: len(piece[0]))
        made = []
        while pool:
            longest = len(pool[-1][0])
            taken = [pool.pop() for _ in range(min(len(pool), max(1, TOKENS // longest)))]
            ids = [sequence + [tokenizer.pad_token_id] * (longest - len(sequence)) for sequence, _ in taken]
            scored = [flags + [False] * (longest - len(flags)) for _, flags in taken]
            made.append(Batch(ids=torch.tensor(ids), scored=torch.tensor(scored)))
        order.shuffle(made)
        yield from made


def _share(step: int, steps: int) -> float:
    """The learning rate as a share of its peak: linear warm-up, then cosine decay to 2 %."""
    return min((step + 1) / WARMUP, 0.02 + 0.49 * (1 + math.cos(math.pi * min(step, steps) / steps)))


def _mimetic_initialization(model: LlamaForCausalLM) -> None:
    """Initialise attention close to its trained state: tokens attend to similar tokens (W_q = W_k), W_o inverts W_v.

    A simplification of Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers", without noise and
    with a positive sign. With it the model learns to copy earlier.
    """
    width, head = model.config.hidden_size, model.config.head_dim
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            frames = [torch.linalg.qr(torch.randn(width, head))[0].T for _ in range(width // head)]
            attention.q_proj.weight.copy_(torch.cat(frames))
            attention.k_proj.weight.copy_(torch.cat(frames))
            turn = torch.linalg.qr(torch.randn(width, width))[0]
            attention.v_proj.weight.copy_(turn * 0.5)
            attention.o_proj.weight.copy_(turn.T * 0.5)


def train_model(tokenizer: PreTrainedTokenizerFast, steps: int) -> LlamaForCausalLM:
    """Train from scratch: Muon (torch >= 2.9) for the layers' matrices, AdamW for embeddings and norms."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=160, intermediate_size=448, num_hidden_layers=4,
        num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    _mimetic_initialization(model)
    LOG.info("%d parameters, %d tokens in the vocabulary", model.num_parameters(), len(tokenizer))
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    optimizers = (
        torch.optim.Muon(inner, lr=MUON_LR, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(outer, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0),
    )
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, partial(_share, steps=steps)) for o in optimizers]
    stream, start = batches(tokenizer, SEED), time.process_time()
    recent: deque[float] = deque(maxlen=50)
    for step, batch in enumerate(islice(stream, steps)):
        scored = batch.scored[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[scored])
        loss = functional.cross_entropy(logits.float(), batch.ids[:, 1:][scored])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        model.zero_grad()
        recent.append(loss.item())
        if step % 50 == 49 or step == steps - 1:
            LOG.info("step %d loss %.3f, %.0f CPU s", step + 1, sum(recent) / len(recent), time.process_time() - start)
    return model


def main(folder: Path, steps: int) -> None:
    """Train the tokenizer and the model, and save them in the folder."""
    tokenizer = train_tokenizer()
    model = train_model(tokenizer, steps)
    tokenizer.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(2)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "model", int(sys.argv[2]) if len(sys.argv) > 2 else STEPS)
