"""KL and cross-entropy straight from final hidden states, a chunk of tokens at a time.

No [tokens, vocab] tensor of a whole batch ever exists. The unembedding is frozen, so the
gradient with respect to the hidden states is formed in the same sweep as the loss: three matrix
products a chunk for the KL and nothing to recompute in the backward pass. All in float32, with
the model's own softcap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.profiler import record_function

from bench.devices import wide

CHUNK_BYTES = {"cpu": 48 * 2**20, "cuda": 2**28, "mps": 2**27}
"""Bytes of a chunk's logits in float32: on a CPU 256 tokens at a vocabulary of 49,152; on CUDA 256
at 262,144. One such tensor is alive at a time, two with a clean side."""
CHUNK_TOKENS = 64
"""But no fewer tokens than these: each chunk reads the whole unembedding."""
SWEEP_BYTES = {"cpu": 2**22, "cuda": 2**26, "mps": 2**26}
"""Bytes of logits that a softmax and its KL go over at a time: on a CPU they stay in its caches."""
MIXED = "dtype" in torch.ops.aten.mm.overloads()
"""Whether this PyTorch multiplies bfloat16 matrices into a float32 one."""


def product(a: Float[Tensor, "m k"], b: Float[Tensor, "k n"]) -> Float[Tensor, "m n"]:
    """a @ b, summed and given in float32 whatever the format of the LM's frozen matrix b.

    On CUDA a `b` of bfloat16 is not copied into float32 but multiplied as it is: nothing is lost
    of an `a` of bfloat16, as sums are in float32; any other `a` is rounded to it.
    """
    if MIXED and b.is_cuda and b.dtype == torch.bfloat16:
        return torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)
    return a.float() @ b.float()


@dataclass(frozen=True)
class Head:
    """From final hidden states to logits: the frozen unembedding and the model's softcap."""

    weight: Float[Tensor, "vocab d_model"]
    bias: Float[Tensor, " vocab"] | None = None
    softcap: float | None = None

    @classmethod
    def of(cls, bridge: torch.nn.Module) -> "Head":
        """The bridge's own; the bias of zeros that a bridge adds is left out."""
        bias = bridge.unembed.bias
        softcap = bridge.cfg.output_logits_soft_cap
        return cls(
            bridge.unembed.weight.detach(),
            bias.detach() if bias is not None and bias.any() else None,
            softcap if softcap and softcap > 0 else None,
        )

    def raw(self, hidden: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens vocab"]:
        """Logits before the softcap, float32."""
        logits = product(hidden, self.weight.T)
        return logits if self.bias is None else logits.add_(self.bias.float())

    def cap(self, logits: Float[Tensor, "tokens vocab"]) -> Float[Tensor, "tokens vocab"]:
        """The softcap, c * tanh(logits / c), in place; as it is without one."""
        if self.softcap is None:
            return logits
        return logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def logits(self, hidden: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens vocab"]:
        """Logits as the model gives them, float32."""
        return self.cap(self.raw(hidden))

    def through_cap(
        self, gradient: Float[Tensor, "tokens vocab"], logits: Float[Tensor, "tokens vocab"]
    ) -> Float[Tensor, "tokens vocab"]:
        """Gradient at capped `logits` -> gradient before the softcap; eats its inputs."""
        if self.softcap is None:
            return gradient
        return gradient.mul_(logits.div_(self.softcap).square_().neg_().add_(1))

    def chunks(self, n_tokens: int) -> list[slice]:
        """Slices that cover `n_tokens`, as even as can be: a chunk of tokens each."""
        most = self._rows_in(CHUNK_BYTES[self.weight.device.type])
        return _slices(n_tokens, max(CHUNK_TOKENS, most))

    def sweeps(self, n_tokens: int) -> list[slice]:
        """Slices of a chunk whose logits are small enough to be gone over several times."""
        return _slices(n_tokens, max(1, self._rows_in(SWEEP_BYTES[self.weight.device.type])))

    def _rows_in(self, n_bytes: int) -> int:
        return n_bytes // (4 * self.weight.shape[0])


def _slices(n: int, most: int) -> list[slice]:
    size = max(1, -(-n // max(1, -(-n // most))))
    return [slice(at, at + size) for at in range(0, n, size)]


def kl(
    clean: Float[Tensor, "tokens d_model"], adapted: Float[Tensor, "tokens d_model"], head: Head
) -> Float[Tensor, " tokens"]:
    """KL(clean || adapted) of each token's next-token distribution, in nats.

    `clean` and `adapted` are hidden states after the final norm; gradient reaches `adapted` alone.
    """

    def of_chunk(logits: Tensor, rows: slice) -> Tensor:
        teacher = head.logits(clean[rows])
        parts = head.sweeps(len(logits))
        return torch.cat([_kl_rows(teacher[part], logits[part], head) for part in parts])

    with record_function("losses"):
        return _Chunked.apply(adapted, head, of_chunk)


def kl_to(
    teacher: "Teacher", adapted: Float[Tensor, "tokens d_model"], head: Head
) -> Float[Tensor, " tokens"]:
    """`kl` to a clean model of which a `Teacher` is kept: two matrix products instead of three."""
    if not len(teacher.constant):
        return kl(teacher.states, adapted, head)

    def of_chunk(logits: Tensor, rows: slice) -> Tensor:
        sums = []
        for part in head.sweeps(len(logits)):
            q, log_z = _softmax(logits[part])
            logits[part] = q  # no softcap here
            sums.append(log_z)
        return torch.cat(sums)

    with record_function("losses"):
        log_z = _Chunked.apply(adapted, head, of_chunk)
        expected = _vecdot(teacher.states, adapted)
        return (teacher.constant - expected + log_z).float()


class Teacher(NamedTuple):
    """What is kept of the clean model, so that a KL to it costs no logits of its own.

    The adapted model's logits are z = W h + b, the clean one's c = W g + b. Then KL =
    (W^T p) (g - h) + logsumexp(z) - logsumexp(c). The expected row of the unembedding and one
    number stand for the whole distribution p; rounding of W^T p meets g - h alone. A softcap is
    not linear; there the final hidden states are kept.
    """

    states: Float[Tensor, "tokens d_model"]
    """W^T p, or the final hidden states."""
    constant: Float[Tensor, " tokens"]
    """(W^T p) g - logsumexp(c), float64; empty with a softcap."""


@torch.no_grad()
def teacher_of(clean: Float[Tensor, "tokens d_model"], head: Head) -> Teacher:
    """`Teacher` of the clean model's final hidden states."""
    if head.softcap is not None:
        return Teacher(clean, clean.new_empty(0))
    states, constants = torch.empty_like(clean, dtype=torch.float32), []
    for rows in head.chunks(len(clean)):
        p, log_z = _softmax(head.logits(clean[rows]))
        states[rows] = p @ head.weight.float()
        constants.append(_vecdot(states[rows], clean[rows]) - log_z)
    return Teacher(states, torch.cat(constants))


@torch.no_grad()
def evaluate(
    adapted: Float[Tensor, "tokens d_model"],
    targets: Int[Tensor, " tokens"],
    head: Head,
    teacher: Teacher | None = None,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"] | None]:
    """CE of the tokens `targets` and, given a `Teacher`, KL(clean || adapted), in nats.

    `adapted` are final hidden states; the KL is None without a teacher.
    """
    kls, entropies = [], []
    for rows in head.chunks(len(adapted)):
        hidden, at = adapted[rows], targets[rows, None]
        logits = head.logits(hidden)
        log_q = torch.log_softmax(logits, -1)
        entropy = -log_q.gather(-1, at).squeeze(-1)
        entropies.append(entropy)
        if teacher is None:
            continue
        if len(teacher.constant):
            logsumexp = logits.gather(-1, at).squeeze(-1) + entropy
            expected = _vecdot(teacher.states[rows], hidden)
            kls.append(teacher.constant[rows] - expected + logsumexp)
        else:
            clean = head.logits(teacher.states[rows])
            p = torch.softmax(clean, -1)
            kls.append(torch.linalg.vecdot(p, torch.log_softmax(clean, -1).sub_(log_q)))
    return torch.cat(entropies), torch.cat(kls).float() if kls else None


def _vecdot(a: Float[Tensor, "rows d"], b: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:
    """The product of each pair of rows, in float64 where the device has it."""
    return torch.linalg.vecdot(a.to(wide(a.device)), b.to(wide(b.device)))


def _softmax(
    logits: Float[Tensor, "tokens vocab"],
) -> tuple[Float[Tensor, "tokens vocab"], Float[Tensor, " tokens"]]:
    """Probabilities and log-sum-exp of each row, from two sweeps that the CPU does fast.

    The largest probability is exp(0) over the sum, so its logarithm gives the sum exactly.
    """
    p = torch.softmax(logits, -1)
    return p, logits.amax(-1) - p.amax(-1).log_()


def _kl_rows(
    teacher: Float[Tensor, "tokens vocab"], logits: Float[Tensor, "tokens vocab"], head: Head
) -> Float[Tensor, " tokens"]:
    """KL of each row. Overwrites `teacher`, and `logits` with the gradient before the softcap."""
    p, log_z_clean = _softmax(teacher)
    losses = torch.linalg.vecdot(p, teacher.sub_(logits)) - log_z_clean
    q, log_z = _softmax(logits)
    logits.copy_(head.through_cap(q.sub_(p), logits))
    return losses.add_(log_z)


class _Chunked(torch.autograd.Function):
    """Loss per token whose gradient with respect to `hidden` is formed chunk by chunk.

    `of_chunk(logits, rows)` gives the losses of these rows, and leaves in `logits` their gradient
    with respect to the logits before the softcap.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Float[Tensor, "tokens d_model"], head: Head, of_chunk: Callable
    ) -> Float[Tensor, " tokens"]:
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden, dtype=torch.float32) if wanted else None
        for rows in head.chunks(len(hidden)):
            logits = head.logits(hidden[rows])
            losses[rows] = of_chunk(logits, rows)
            if gradient is not None:
                gradient[rows] = product(logits, head.weight)
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Float[Tensor, " tokens"]) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[:, None]).to(ctx.dtype), None, None
