"""The loss of transducers: exact, in one wavefront over anti-diagonals, with gradients that hold.

    loss_b = transducer_loss(logits_btuv, tokens_bu, frames_b, counts_b, blank=0)

The RNN-Transducer (arXiv:1211.3711) sums over every way to write U tokens during T frames: from
node (t, u), t frames read and u tokens written, a token leads to (t, u + 1) and `blank` to
(t + 1, u), and a blank at (T - 1, U) ends. With `jumps` (token-and-duration, TDT,
arXiv:2304.06795) a model says beside each token and blank how many frames it lasts.

How. Nodes with the same t + u depend on none of each other, so a scan over these diagonals has
T + U steps, each over all tokens of all examples. It runs backward: beta, the log probability of
all that may follow a node, and where the gradient is asked for the chance of each arc given that
its node is passed, exp(arc + beta behind it - beta). A second scan carries the chance of passing
each node forward through these. Every number in it is a chance, got by products and sums of
chances: nothing large is ever subtracted from something large, as alpha + beta - loss does, where
float32 loses most of its digits on long lattices.

Shape suffixes: b batch, t frames, u tokens written (one more than there are tokens), v vocabulary,
j jumps, n diagonals.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from research.arguments import InputError
from research.kernels.matmul import wide

Array = jax.Array
NEVER = -1e30  # a log probability; sums of a few of these are finite in float32


def transducer_loss(
    logits_btuv: Array,
    tokens_bu: Array,
    frames_b: Array,
    counts_b: Array,
    *,
    blank: int,
    jumps: tuple[int, ...] = (),
    fastemit: Any = 0.0,
    sigma: float = 0.0,
) -> Array:
    """Returns -log P(tokens) of each example, in nats (b,), float32 (of float64: float64).

    logits_btuv (b, t, u + 1, v) are of tokens and blank; with `jumps`, such as (0, 1, 2, 3, 4), the
    last len(jumps) of v are of these instead. tokens_bu (b, u) are read up to counts_b (b,), frames
    up to frames_b (b,); what lies behind has no influence and no gradient. An example without
    frames has loss 0. `fastemit` multiplies the gradients of tokens, not of blanks, by 1 + fastemit
    (arXiv:2010.11148); the loss stays. `sigma` is taken from each log probability of tokens and
    blank where there are jumps (arXiv:2304.06795, section 3.4). Both may be tracers.

    Beside the logits and their gradient nothing of their size is held.
    Raises InputError for shapes that do not fit, and a blank that is none of the vocabulary.
    """
    blank_jbtu, token_jbtu = log_probs(
        logits_btuv, tokens_bu, blank=blank, jumps=jumps, sigma=sigma
    )
    return lattice_loss(blank_jbtu, token_jbtu, frames_b, counts_b, jumps=jumps, fastemit=fastemit)


def log_probs(
    logits_btuv: Array,
    tokens_bu: Array,
    *,
    blank: int,
    jumps: tuple[int, ...] = (),
    sigma: float = 0.0,
) -> tuple[Array, Array]:
    """Returns the log probabilities of the arcs: of blanks and of the next tokens, (j, b, t, u + 1)
    each, one for each of the `jumps` (none: the RNN-Transducer's, j is 1). Where no token is next
    it is that of token 0. Arguments as above; raises the same."""
    batch, frames, nodes, width = logits_btuv.shape
    vocabulary = width - len(jumps)
    if tokens_bu.shape != (batch, nodes - 1):
        raise InputError(
            f"the transducer's logits {logits_btuv.shape} are (batch, frames, tokens + 1, "
            f"vocabulary), which tokens {tokens_bu.shape} do not fit"
        )
    if not 0 <= blank < vocabulary:
        raise InputError(f"blank={blank} is none of the {vocabulary} tokens of the transducer")
    next_bu = jnp.pad(tokens_bu, ((0, 0), (0, 1)))
    blank_btu, token_btu = _two_of(logits_btuv[..., :vocabulary], next_bu, blank)
    if not jumps:
        return blank_btu[None], token_btu[None]
    jump_jbtu = jnp.moveaxis(jax.nn.log_softmax(wide(logits_btuv[..., vocabulary:])), -1, 0)
    return blank_btu - sigma + jump_jbtu, token_btu - sigma + jump_jbtu


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _two_of(logits_btuv: Array, next_bu: Array, blank: int) -> tuple[Array, Array]:
    """Returns the log softmax of two columns, `blank` and `next_bu`."""
    return _two_forward(logits_btuv, next_bu, blank)[0]


def _two_forward(logits_btuv: Array, next_bu: Array, blank: int) -> tuple[Any, Any]:
    logits = wide(logits_btuv)
    top_btu = logits.max(-1)
    # The largest is taken off first, in which nothing is lost, then the small logarithm.
    log_btu = jnp.log(jnp.exp(logits - top_btu[..., None]).sum(-1))
    place = jnp.broadcast_to(next_bu[:, None, :, None], (*logits.shape[:3], 1))
    token_btu = jnp.take_along_axis(logits_btuv, place, -1)[..., 0].astype(logits.dtype)
    two = (logits[..., blank] - top_btu) - log_btu, (token_btu - top_btu) - log_btu
    return two, (logits_btuv, next_bu, top_btu, log_btu)


def _two_backward(blank: int, residuals: Any, cotangents: tuple[Array, Array]) -> tuple:
    logits_btuv, next_bu, top_btu, log_btu = residuals
    d_blank, d_token = (d[..., None] for d in cotangents)
    # One expression of (b, t, u, v), which compiles to one loop: no scatter, nothing held but it.
    chance = jnp.exp(wide(logits_btuv) - top_btu[..., None] - log_btu[..., None])
    column_v = jnp.arange(logits_btuv.shape[-1])
    is_next = column_v == next_bu[:, None, :, None]
    d = jnp.where(column_v == blank, d_blank, 0) + jnp.where(is_next, d_token, 0)
    return (d - chance * (d_blank + d_token)).astype(logits_btuv.dtype), None


_two_of.defvjp(_two_forward, _two_backward)


def lattice_loss(
    blank_jbtu: Array,
    token_jbtu: Array,
    frames_b: Array,
    counts_b: Array,
    *,
    jumps: tuple[int, ...] = (),
    fastemit: Any = 0.0,
) -> Array:
    """Returns the loss (b,) of the log probabilities of arcs, as `log_probs` gives them. Their
    gradients are minus the chances that an arc is taken (tokens' times 1 + fastemit).

    Raises InputError for jumps that are none, and for none that moves on.
    """
    if list(jumps) != sorted({jump for jump in jumps if type(jump) is int and jump >= 0}):
        raise InputError(f"jumps={jumps} must be whole numbers of frames that rise from 0 or more")
    if jumps and not jumps[-1]:
        raise InputError(f"jumps={jumps} never move on; give more, such as (0, 1, 2, 3, 4)")
    ones = (1,), (0,)  # of the RNN-Transducer's blank and tokens
    # A blank that lasts no frame would lead back to its own node.
    of_blanks, of_tokens = (tuple(jump for jump in jumps if jump), jumps) if jumps else ones
    blank_jbtu = blank_jbtu[len(jumps) - len(of_blanks) :] if jumps else blank_jbtu
    frames, nodes = blank_jbtu.shape[2:]
    t, u = jnp.arange(frames)[:, None], jnp.arange(nodes)
    frames_b11, counts_b11 = frames_b[:, None, None], counts_b[:, None, None]
    arcs = []
    for jump, arc_btu in zip(of_blanks, blank_jbtu, strict=True):
        arcs.append(jnp.where((t + jump <= frames_b11) & (u <= counts_b11), arc_btu, NEVER))
    for jump, arc_btu in zip(of_tokens, token_jbtu, strict=True):
        arcs.append(jnp.where((t + jump < frames_b11) & (u < counts_b11), arc_btu, NEVER))
    weights = jnp.stack([jnp.ones(())] * len(of_blanks) + [1.0 + fastemit] * len(of_tokens))
    where = (of_blanks, of_tokens)
    return _lattice(where, jnp.stack(arcs), frames_b, counts_b, jax.lax.stop_gradient(weights))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lattice(
    jumps: tuple, arcs_abtu: Array, frames_b: Array, counts_b: Array, weights_a: Array
) -> Array:
    return _backward(jumps, arcs_abtu, frames_b, counts_b, chances=False)[0]


def _lattice_forward(
    jumps: tuple, arcs_abtu: Array, frames_b: Array, counts_b: Array, weights_a: Array
) -> tuple[Array, Any]:
    loss_b, chances_nabu = _backward(jumps, arcs_abtu, frames_b, counts_b, chances=True)
    return loss_b, (chances_nabu, frames_b, weights_a)


def _lattice_backward(jumps: tuple, residuals: Any, d_loss_b: Array) -> tuple:
    chances_nabu, frames_b, weights_a = residuals
    passed_nabu = _forward(jumps, chances_nabu)
    scale_b = jnp.where(frames_b > 0, d_loss_b, 0)
    passed_nabu *= weights_a.astype(scale_b.dtype)[:, None, None] * -scale_b[:, None]
    frames = len(chances_nabu) + 1 - chances_nabu.shape[-1]
    return _upright(passed_nabu, frames), None, None, None


_lattice.defvjp(_lattice_forward, _lattice_backward)


def _backward(
    jumps: tuple, arcs_abtu: Array, frames_b: Array, counts_b: Array, chances: bool
) -> tuple[Array, Any]:
    """Returns the loss (b,), and with `chances` those of the arcs of each node given that it is
    passed, (n, a, b, u)."""
    arcs_nabu = _skewed(arcs_abtu)
    diagonals, _, batch, nodes = arcs_nabu.shape
    at_end_b, u = frames_b + counts_b, jnp.arange(nodes)
    is_end_bu = u == counts_b[:, None]
    # What lies this many diagonals ahead, and whether one token further.
    ahead = [(jump, 0) for jump in jumps[0]] + [(jump + 1, 1) for jump in jumps[1]]
    depth = max(far for far, _ in ahead)

    def step(carry: tuple, now: tuple) -> tuple:
        # Those of the next `depth` diagonals, the nearest first, less sum_b; and what rounding took
        # from that (Kahan 1965): it is the sum of as many numbers as there are diagonals.
        betas, sum_b, lost_b = carry
        n, arcs_abu = now
        behind = [_left(betas[far - 1]) if more else betas[far - 1] for far, more in ahead]
        ways_abu = jnp.maximum(arcs_abu + jnp.stack(behind), NEVER)
        top_bu = ways_abu.max(0)
        each_abu = jnp.exp(ways_abu - top_bu)
        total_bu = each_abu.sum(0)
        beta_bu = jnp.maximum(top_bu + jnp.log(total_bu), NEVER)
        # Kept near 0, where float32 is finest; what is taken off is summed beside.
        betas = (beta_bu, *betas[: depth - 1])
        top_b = functools.reduce(jnp.maximum, [beta.max(-1) for beta in betas])
        top_b = jnp.where(top_b > NEVER / 4, top_b, 0)
        betas = tuple(jnp.maximum(beta - top_b[:, None], NEVER) for beta in betas)
        # The end stands on a diagonal of its own example.
        ends_bu = is_end_bu & (n == at_end_b)[:, None]
        betas = (jnp.where(ends_bu, 0.0, betas[0]), *betas[1:])
        more_b = top_b - lost_b
        new_b = sum_b + more_b
        return (betas, new_b, (new_b - sum_b) - more_b), (each_abu / total_bu if chances else None)

    never_bu = jnp.full((batch, nodes), NEVER, arcs_nabu.dtype)
    last_bu = jnp.where(is_end_bu & (at_end_b == diagonals)[:, None], 0.0, never_bu)
    zero_b = jnp.zeros(batch, arcs_nabu.dtype)
    start = (last_bu, *[never_bu] * (depth - 1)), zero_b, zero_b
    over = jnp.arange(diagonals), arcs_nabu
    (betas, sum_b, _), chances_nabu = jax.lax.scan(step, start, over, reverse=True)
    return jnp.where(frames_b > 0, -(betas[0][:, 0] + sum_b), 0), chances_nabu


def _forward(jumps: tuple, chances_nabu: Array) -> Array:
    """Returns the chance that an arc is taken, by diagonals, from those given its node."""
    _, arcs, batch, nodes = chances_nabu.shape
    ahead = [(jump, 0) for jump in jumps[0]] + [(jump + 1, 1) for jump in jumps[1]]
    depth = max(far for far, _ in ahead)

    def step(before: tuple, chances_abu: Array) -> tuple:
        coming = [before[far - 1][arc] for arc, (far, _) in enumerate(ahead)]
        came = [_right(x) if more else x for x, (_, more) in zip(coming, ahead, strict=True)]
        taken_abu = sum(came) * chances_abu
        return (taken_abu, *before[: depth - 1]), taken_abu

    # Every path begins at node (0, 0), as if a blank had led there.
    none_abu = jnp.zeros((arcs, batch, nodes), chances_nabu.dtype)
    first = [none_abu] * depth
    first[ahead[0][0] - 1] = none_abu.at[0, :, 0].set(1.0)
    return jax.lax.scan(step, tuple(first), chances_nabu)[1]


def _left(x_bu: Array) -> Array:
    """Returns what stands one token further, NEVER behind the last."""
    return jnp.pad(x_bu[..., 1:], ((0, 0), (0, 1)), constant_values=NEVER)


def _right(x_bu: Array) -> Array:
    """Returns what stands one token before, 0 before the first."""
    return jnp.pad(x_bu[..., :-1], ((0, 0), (1, 0)))


def _skewed(x_abtu: Array) -> Array:
    """Returns (n, a, b, u), whose diagonal n holds the nodes with t + u = n, NEVER elsewhere."""
    arcs, batch, frames, nodes = x_abtu.shape
    # Row u of (u, t), padded to t + u + 1 columns and read in lines of one less, moves u to the
    # right: no gather, which is slow on TPU.
    padded = jnp.pad(
        x_abtu.swapaxes(2, 3), ((0, 0), (0, 0), (0, 0), (0, nodes)), constant_values=NEVER
    )
    diagonals = frames + nodes - 1
    lines = padded.reshape(arcs, batch, -1)[..., : nodes * diagonals]
    return lines.reshape(arcs, batch, nodes, diagonals).transpose(3, 0, 1, 2)


def _upright(x_nabu: Array, frames: int) -> Array:
    """Returns (a, b, t, u) of what _skewed made."""
    diagonals, arcs, batch, nodes = x_nabu.shape
    lines = x_nabu.transpose(1, 2, 3, 0).reshape(arcs, batch, -1)
    padded = jnp.pad(lines, ((0, 0), (0, 0), (0, nodes)))
    return padded.reshape(arcs, batch, nodes, diagonals + 1)[..., :frames].swapaxes(2, 3)
