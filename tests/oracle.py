"""The released algorithm, slow and obvious: what the fast path is compared with.

At every step the whole sequence so far goes through the network again, in raster order under a mask, all
heads project all positions, and one cell at a time is looked at.
"""

import torch
import torch.nn.functional as F


def next_logits(model, condition, tokens, known, padding=None):
    """{cell: (B, V)} for the cells whose predecessors are all known, by one full pass.

    ``tokens`` (B, N) in raster order (anything where not known); ``known`` a set of cells.
    """
    c, order = model.config, model.config.order
    length = c.condition_tokens
    x = torch.cat([condition, model.token_embedding(tokens)], 1)
    if c.position == "absolute":
        x = x + model.position_embedding
    batch, positions, dim = x.shape
    step = [-length + i for i in range(length)] + list(order.step_of)
    visible = torch.zeros(batch, 1, positions, positions, dtype=torch.bool)
    for b in range(batch):
        for i in range(positions):
            for j in range(positions):
                seen = j < length or (j - length) in known
                if padding is not None and j < length and padding[b, j]:
                    seen = False
                visible[b, 0, i, j] = i == j or (seen and step[j] <= step[i])
    states = []
    for layer in model.layers:
        h = layer.attention_norm(x)
        q, k, v = layer.qkv(h).view(batch, positions, 3, c.heads, c.head_dim).permute(2, 0, 3, 1, 4)
        if c.position == "rotary":
            q, k = (rotate(t, c.grid, length) for t in (q, k))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        x = x + layer.out(attended.transpose(1, 2).reshape(batch, positions, dim))
        h = layer.ffn_norm(x)
        x = x + layer.ffn.down(F.silu(layer.ffn.gate(h)) * layer.ffn.up(h))
        states.append(x)
    states = states[c.layers - 1 :]
    logits = {
        name: model.heads[name].output(model.heads[name].norm(state))
        for name, state in zip(order.heads, states, strict=True)
    }
    found = {}
    for cell in range(order.cells):
        before = order.predecessors(cell)
        if cell in known or any(p.cell not in known for p in before):
            continue
        if before:
            found[cell] = torch.stack([logits[p.head][:, length + p.cell] for p in before]).mean(0)
        else:
            found[cell] = torch.stack([logits[name][:, length - 1] for name in order.heads]).mean(0)
    return found


def rotate(x, grid, length):
    """The rotary embedding of (B, heads, C + H * W, head_dim), pair by pair."""
    out = torch.zeros_like(x)  # condition tokens: cosine and sine are zero
    half = x.shape[-1] // 2
    for cell in range(grid[0] * grid[1]):
        h, w = divmod(cell, grid[1])
        for pair in range(half):
            i = pair % (half // 2)
            angle = torch.tensor((h if pair < half // 2 else w) * 10000.0 ** (-2 * i / half))
            a, b = x[:, :, length + cell, 2 * pair], x[:, :, length + cell, 2 * pair + 1]
            out[:, :, length + cell, 2 * pair] = a * angle.cos() - b * angle.sin()
            out[:, :, length + cell, 2 * pair + 1] = a * angle.sin() + b * angle.cos()
    return out


@torch.no_grad()
def greedy(model, condition, scale=1.0, interval=-1, padding=None):
    """(tokens (B, N) in raster order, logits (B, N, V) in generation order), with the most likely tokens."""
    order = model.config.order
    conditional, unconditional = model.condition(condition), model.condition.unconditional(condition)
    tokens = torch.zeros(len(condition), order.cells, dtype=torch.int64)
    known, kept = set(), []
    while len(known) < order.cells:
        logits = next_logits(model, conditional, tokens, known, padding)
        if scale > 1 and (interval == -1 or len(known) <= interval):
            without = next_logits(model, unconditional, tokens, known, padding)
            logits = {cell: without[cell] + scale * (logits[cell] - without[cell]) for cell in logits}
        for cell, values in logits.items():
            tokens[:, cell] = values.argmax(-1)
            kept.append(values)
        known |= set(logits)
    return tokens, torch.stack(kept, 1)
