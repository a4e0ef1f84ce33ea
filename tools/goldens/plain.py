"""A second opinion: every model family once more, token by token in float64.

Written from docs/hybrid-format.md and the families' own sources, apart from
tools/hybrid_reference.py, transformers and FLA, so that a mistake in one does not repeat in the
other. Nothing is fast here. x is [T, D], heads are [T, H, dim], a state is [H, K, V].
"""

import math

import torch
import torch.nn.functional as F

F64 = torch.float64

# Per routed layer and forward: the least margin with which a token chose its mixers.
route_margins = []


def rms(x, weight=None, eps=1e-6):
    y = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def l2(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


class Weights:
    """Tensors below a prefix, in float64. Counts what was read, so that leftovers are found."""

    def __init__(self, tensors, prefix="", used=None):
        self.tensors, self.prefix = tensors, prefix
        self.used = set() if used is None else used

    def sub(self, name):
        return Weights(self.tensors, self.prefix + name + ".", self.used)

    def has(self, name):
        return self.prefix + name in self.tensors

    def __getitem__(self, name):
        self.used.add(self.prefix + name)
        return self.tensors[self.prefix + name].to(F64)

    def get(self, name):
        return self[name] if self.has(name) else None

    def linear(self, name, x):
        y = x @ self[name + ".weight"].T
        return y + self[name + ".bias"] if self.has(name + ".bias") else y

    def conv(self, name, x, act=None):
        """Depthwise causal convolution; act after it."""
        w = self[name + ".weight"][:, 0, :]
        width = w.shape[1]
        rows = []
        for t in range(x.shape[0]):
            acc = torch.zeros(x.shape[1], dtype=F64)
            for j in range(width):
                s = t - width + 1 + j
                if s >= 0:
                    acc = acc + w[:, j] * x[s]
            rows.append(acc)
        y = torch.stack(rows)
        if self.has(name + ".bias"):
            y = y + self[name + ".bias"]
        return act(y) if act else y

    def unread(self, skipped=()):
        return [n for n in self.tensors if n not in self.used and not any(s in n for s in skipped)]


def recurrence(q, k, v, g=None, beta=None):
    """S = exp(g) S; S += k (beta (v - S^T k))^T, or S += k v^T without beta; o = S^T q.

    g is [T, H] or [T, H, K]; beta [T, H].
    """
    steps, heads, keys = q.shape
    state = torch.zeros(heads, keys, v.shape[2], dtype=F64)
    out = []
    for t in range(steps):
        if g is not None:
            decay = g[t].exp()
            state = state * (decay[:, None, None] if decay.dim() == 1 else decay[:, :, None])
        write = v[t]
        if beta is not None:
            read = torch.einsum("hkv,hk->hv", state, k[t])
            write = beta[t][:, None] * (v[t] - read)
        state = state + k[t][:, :, None] * write[:, None, :]
        out.append(torch.einsum("hkv,hk->hv", state, q[t]))
    return torch.stack(out)


def heads(x, n):
    return x.reshape(x.shape[0], n, -1)


def spread(x, times):
    """[T, HK, d] -> [T, HK * times, d], each head repeated `times` in a row."""
    return torch.stack([x[:, i // times] for i in range(x.shape[1] * times)], dim=1)


def rope(x, positions, theta, rotary, scaling=None):
    """Rotate-half over the first `rotary` dimensions of [T, H, d]."""
    half = rotary // 2
    freq = []
    for i in range(half):
        f = theta ** (-2.0 * i / rotary)
        if scaling and scaling["rope_type"] == "linear":
            f = f / scaling["factor"]
        elif scaling and scaling["rope_type"] == "llama3":
            wavelength = 2 * math.pi / f
            original = scaling["original_max_position_embeddings"]
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            if wavelength > original / low:
                f = f / scaling["factor"]
            elif wavelength > original / high:
                mix = (original / wavelength - low) / (high - low)
                f = (1 - mix) * f / scaling["factor"] + mix * f
        freq.append(f)
    angle = positions.to(F64)[:, None] * torch.tensor(freq, dtype=F64)[None]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b, rest = x[..., :half], x[..., half:rotary], x[..., rotary:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def softmax_attention(q, k, v, scale, window=None):
    """Causal; k and v have one head per query head; a token sees `window` entries with itself."""
    out = []
    for t in range(q.shape[0]):
        first = 0 if window is None else max(0, t - window + 1)
        scores = torch.einsum("hd,shd->hs", q[t], k[first:t + 1]) * scale
        p = torch.softmax(scores, dim=-1)
        out.append(torch.einsum("hs,shd->hd", p, v[first:t + 1]))
    return torch.stack(out)


# --- mixers of the hybrid format; each is mixer(weights, x, params, D, eps, positions) -----------


def gla(w, x, p, D, eps, positions, kind="gla"):
    H = p.get("num_heads", 4)
    HK = p.get("num_kv_heads", H)
    expand_k = p.get("expand_k", 0.5 if kind == "gla" else 1.0)
    expand_v = p.get("expand_v", 2.0 if kind == "retnet" else 1.0)
    K = p.get("head_k_dim") or int(D * expand_k) // H
    V = p.get("head_v_dim") or int(D * expand_v) // H
    eps = p.get("norm_eps", eps)
    q, k, v = (w.linear(n + "_proj", x) for n in "qkv")
    if p.get("use_short_conv", kind == "simple_gla"):
        q, k, v = (w.conv(n + "_conv1d", y, F.silu) for n, y in zip("qkv", (q, k, v)))
    q, k, v = heads(q, H), spread(heads(k, HK), H // HK), spread(heads(v, HK), H // HK)
    assert q.shape[2] == K and v.shape[2] == V
    if kind == "retnet":
        theta = p.get("rope_theta", 10000.0)
        q, k = rope(q, positions, theta, K), rope(k, positions, theta, K)
        rate = torch.tensor([math.log(1 - 2.0 ** (-5 - h)) for h in range(H)], dtype=F64)
        g = rate.expand(x.shape[0], H)
    else:
        low = w.linear("gk_proj", x) if kind == "simple_gla" else w.linear(
            "gk_proj.1", w.linear("gk_proj.0", x))
        g = F.logsigmoid(low) / p.get("gate_logit_normalizer", 16)
        if p.get("clamp_min") is not None:
            g = g.clamp(min=p["clamp_min"])
        if kind == "gla":
            g = spread(heads(g, HK), H // HK)
    o = recurrence(q * K ** -0.5, k, v, g)
    if p.get("use_output_gate", True):
        name = "g_norm_swish_gate" if w.has("g_norm_swish_gate.weight") else "g_norm"
        o = rms(o, w.get(name + ".weight"), eps) * F.silu(heads(w.linear("g_proj", x), H))
    else:
        o = rms(o, w.get("g_norm.weight"), eps)
    return w.linear("o_proj", o.flatten(1))


def simple_gla(*args):
    return gla(*args, kind="simple_gla")


def retnet(*args):
    return gla(*args, kind="retnet")


def linear_attn(w, x, p, D, eps, positions):
    H = p.get("num_heads", 4)
    HK = p.get("num_kv_heads", H)
    q = heads(w.linear("q_proj", x), H)
    k = spread(heads(w.linear("k_proj", x), HK), H // HK)
    v = spread(heads(w.linear("v_proj", x), HK), H // HK)
    kind = p.get("feature_map", "identity")
    if kind == "relu":
        q, k = q.clamp(min=0), k.clamp(min=0)
    elif kind == "elu":
        q, k = (torch.where(y > 0, y + 1, y.clamp(max=0).exp()) for y in (q, k))
    elif kind == "elementwise_product":
        q = (w.linear("feature_map_q.layer1", q)) * (w.linear("feature_map_q.layer2", q))
        k = (w.linear("feature_map_k.layer1", k)) * (w.linear("feature_map_k.layer2", k))
    if p.get("norm_q"):
        q = q / (q.sum(-1, keepdim=True) + 1e-4)
    if p.get("norm_k"):
        k = k / (k.sum(-1, keepdim=True) + 1e-4)
    q = q * q.shape[2] ** -0.5
    o = recurrence(q, k, v)
    if p.get("norm_feature_map"):
        total = torch.cumsum(k, dim=0)
        o = o / ((q * total).sum(-1, keepdim=True) + 1e-10)
    o = rms(o, w["norm.weight"], p.get("norm_eps", eps))
    return w.linear("o_proj", o.flatten(1))


def delta_net(w, x, p, D, eps, positions):
    H = p.get("num_heads", 4)
    kind = p.get("qk_activation", "silu")
    act = {"silu": F.silu, "relu": F.relu, "elu": lambda y: F.elu(y) + 1,
           "identity": lambda y: y}[kind]
    q, k, v = (w.linear(n + "_proj", x) for n in "qkv")
    if p.get("use_short_conv", True):
        q, k, v = (w.conv(n + "_conv1d", y) for n, y in zip("qkv", (q, k, v)))
    q, k, v = heads(act(q), H), heads(act(k), H), heads(F.silu(v), H)
    if p.get("qk_norm", "l2") == "l2":
        q, k = l2(q), l2(k)
    else:
        q, k = q / q.sum(-1, keepdim=True), k / k.sum(-1, keepdim=True)
    beta = torch.ones(x.shape[0], H, dtype=F64)
    if p.get("use_beta", True):
        beta = torch.sigmoid(w.linear("b_proj", x))
    if p.get("allow_neg_eigval"):
        beta = beta * 2
    o = recurrence(q * q.shape[2] ** -0.5, k, v, None, beta)
    o = rms(o, w["o_norm.weight"], p.get("norm_eps", eps))
    if p.get("use_gate"):
        o = o * F.silu(heads(w.linear("g_proj", x), H))
    return w.linear("o_proj", o.flatten(1))


def gated_deltanet(w, x, p, D, eps, positions, channelwise=False):
    H = p.get("num_heads", 4)
    HV = p.get("num_v_heads", H)
    q, k, v = (w.linear(n + "_proj", x) for n in "qkv")
    if p.get("use_short_conv", True):
        q, k, v = (w.conv(n + "_conv1d", y) for n, y in zip("qkv", (q, k, v)))
    q, k, v = (heads(F.silu(y), n) for y, n in ((q, H), (k, H), (v, HV)))
    K = q.shape[2]
    q, k = spread(l2(q) * K ** -0.5, HV // H), spread(l2(k), HV // H)
    rate = w["A_log"].exp()
    if channelwise:
        f = heads(w.linear("f_proj.1", w.linear("f_proj.0", x)) + w["dt_bias"], HV)
        if p.get("lower_bound") is not None:
            g = p["lower_bound"] * torch.sigmoid(rate[:, None] * f)
        else:
            g = -rate[:, None] * F.softplus(f)
    else:
        g = -rate * F.softplus(w.linear("a_proj", x) + w["dt_bias"])
    beta = torch.sigmoid(w.linear("b_proj", x)) * (2 if p.get("allow_neg_eigval") else 1)
    o = rms(recurrence(q, k, v, g, beta), w["o_norm.weight"], p.get("norm_eps", eps))
    if channelwise:
        o = o * torch.sigmoid(heads(w.linear("g_proj.1", w.linear("g_proj.0", x)), HV))
    elif p.get("use_gate", True):
        o = o * F.silu(heads(w.linear("g_proj", x), HV))
    return w.linear("o_proj", o.flatten(1))


def kda(*args):
    return gated_deltanet(*args, channelwise=True)


def mamba2(w, x, p, D, eps, positions):
    H = p.get("num_heads", 4)
    P = p.get("head_dim") or D * p.get("expand", 2) // H
    N, G = p.get("state_size", 64), p.get("n_groups", 1)
    d = H * P
    z, xbc, dt = torch.split(w.linear("in_proj", x), [d, d + 2 * G * N, H], dim=-1)
    xbc = w.conv("conv1d", xbc, F.silu)
    u, B, C = torch.split(xbc, [d, G * N, G * N], dim=-1)
    u, B, C = heads(u, H), spread(heads(B, G), H // G), spread(heads(C, G), H // G)
    low, high = p.get("time_step_limit", [0, None])
    dt = F.softplus(dt + w["dt_bias"]).clamp(min=low)
    if high is not None:
        dt = dt.clamp(max=high)
    y = recurrence(C, B, u * dt[:, :, None], -w["A_log"].exp() * dt)
    y = (y + w["D"][:, None] * u).flatten(1)
    if p.get("rms_norm", True):
        gate = F.silu(z)
        before = p.get("norm_before_gate", False)
        y = y if before else y * gate
        y = rms(heads(y, G), None, p.get("norm_eps", eps)).flatten(1) * w["norm.weight"]
        y = y * gate if before else y
    else:
        y = y * F.silu(z)
    return w.linear("out_proj", y)


def attn(w, x, p, D, eps, positions):
    H = p.get("num_heads", 4)
    HK = p.get("num_kv_heads", H)
    q, k, v = (heads(w.linear(n + "_proj", x), h) for n, h in (("q", H), ("k", HK), ("v", HK)))
    hd = q.shape[2]
    if p.get("qk_norm"):
        q = rms(q, w["q_norm.weight"], p.get("norm_eps", eps))
        k = rms(k, w["k_norm.weight"], p.get("norm_eps", eps))
    theta = p.get("rope_theta", 10000.0)
    if theta is not None:
        rotary = int(hd * p.get("partial_rotary_factor", 1.0))
        q, k = (rope(y, positions, theta, rotary, p.get("rope_scaling")) for y in (q, k))
    scale = p.get("scale", hd ** -0.5)
    o = softmax_attention(q, spread(k, H // HK), spread(v, H // HK), scale, p.get("window"))
    o = o.flatten(1)
    if p.get("output_gate"):
        o = o * torch.sigmoid(w.linear("g_proj", x))
    return w.linear("o_proj", o)


def short_conv(w, x, p, D, eps, positions):
    b, c, u = torch.chunk(w.linear("in_proj", x), 3, dim=-1)
    return w.linear("out_proj", c * w.conv("conv", b * u))


MIXERS = {"gla": gla, "simple_gla": simple_gla, "retnet": retnet, "linear_attn": linear_attn,
          "delta_net": delta_net, "gated_deltanet": gated_deltanet, "kda": kda, "mamba2": mamba2,
          "attn": attn, "local_attn": attn, "short_conv": short_conv}


# --- whole models --------------------------------------------------------------------------------


def block_norm(kind, w, name, x, eps):
    if kind == "layer_norm":
        c = x - x.mean(-1, keepdim=True)
        y = c / torch.sqrt((c * c).mean(-1, keepdim=True) + eps)
        return y * w[name + ".weight"] + w[name + ".bias"]
    weight = w[name + ".weight"]
    return rms(x, 1 + weight if kind == "rms_norm_zero_centered" else weight, eps)


def feed_forward(w, x, ff):
    gelu_tanh = lambda y: F.gelu(y, approximate="tanh")
    if ff["type"] == "mlp":
        act = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": gelu_tanh, "relu": F.relu,
               "relu2": lambda y: F.relu(y) ** 2}[ff.get("activation", "gelu_tanh")]
        return w.linear("down_proj", act(w.linear("up_proj", x)))
    act = F.silu if ff["type"] == "swiglu" else gelu_tanh
    return w.linear("down_proj", act(w.linear("gate_proj", x)) * w.linear("up_proj", x))


def joined(w, x, layer, D, eps):
    positions = torch.arange(x.shape[0])
    mixers = layer["mixers"]
    run = lambda i, rows: MIXERS[mixers[i]["type"]](
        w.sub(f"mixers.{i}"), x[rows], mixers[i].get("params", {}), D, eps, positions[rows])
    if layer["type"] == "parallel":
        return sum(run(i, positions) for i in range(len(mixers)))
    p = torch.softmax(w.linear("router", x), dim=-1)
    # A stable descending sort keeps the lower index first among equals.
    order = torch.sort(p, dim=-1, descending=True, stable=True).indices
    top_k = layer.get("top_k", 1)
    chosen = order[:, :top_k]
    if top_k < len(mixers):
        ranked = p.gather(1, order)
        route_margins.append(float((ranked[:, top_k - 1] - ranked[:, top_k]).min()))
    weight = p.gather(1, chosen)
    if layer.get("norm_topk_prob"):
        weight = weight / weight.sum(-1, keepdim=True)
    out = torch.zeros_like(x)
    for i in range(len(mixers)):
        rows, slots = (chosen == i).nonzero(as_tuple=True)
        if len(rows):
            out[rows] += weight[rows, slots][:, None] * run(i, rows)
    return out


def hybrid(config, tensors):
    D, eps = config["hidden_size"], config.get("norm_eps", 1e-6)
    kind = config.get("norm", "rms_norm")
    scale = config.get("residual_multiplier", 1.0)

    def forward(ids):
        w = Weights(tensors)
        embedding = w["model.embeddings.weight"]
        h = embedding[ids] * config.get("embedding_multiplier", 1.0)
        for n, layer in enumerate(config["layers"]):
            lw = w.sub(f"model.layers.{n}")
            x = block_norm(kind, lw, "mixer_norm", h, eps)
            if layer["type"] in ("parallel", "routed"):
                h = h + scale * joined(lw, x, layer, D, eps)
            else:
                h = h + scale * MIXERS[layer["type"]](
                    lw.sub("mixer"), x, layer.get("params", {}), D, eps, torch.arange(len(ids)))
            ff = layer["feed_forward"] if "feed_forward" in layer else config.get("feed_forward")
            if ff:
                x = block_norm(kind, lw, "mlp_norm", h, eps)
                h = h + scale * feed_forward(lw.sub("mlp"), x, ff)
        h = block_norm(kind, w, "model.norm", h, eps)
        head = embedding if config.get("tie_word_embeddings") else w["lm_head.weight"]
        return h @ head.T * config.get("logits_multiplier", 1.0)

    return forward


def fla_gla(config, tensors):
    """FLA's `gla`, with its `attn` option: one dict or a list of dicts."""
    c = config
    D, eps = c["hidden_size"], c["norm_eps"]
    params = {k: c[k] for k in ("num_heads", "expand_k", "expand_v", "clamp_min", "use_output_gate",
                                "use_short_conv") if k in c}
    params["num_kv_heads"] = c.get("num_kv_heads") or c["num_heads"]
    options = c.get("attn") or []
    options = [options] if isinstance(options, dict) else options

    def forward(ids):
        w = Weights(tensors)
        embedding = w["model.embeddings.weight"]
        h = embedding[ids]
        positions = torch.arange(len(ids))
        for n in range(c["num_hidden_layers"]):
            lw = w.sub(f"model.layers.{n}")
            x = rms(h, lw["attn_norm.weight"], eps)
            option = next((o for o in options if n in o["layers"]), None)
            if option is None:
                h = h + gla(lw.sub("attn"), x, params, D, eps, positions)
            else:
                p = {"num_heads": option["num_heads"],
                     "num_kv_heads": option.get("num_kv_heads") or option["num_heads"],
                     "rope_theta": option.get("rope_theta", 10000.0),
                     "window": option.get("window_size")}
                h = h + attn(lw.sub("attn"), x, p, D, eps, positions)
            x = rms(h, lw["mlp_norm.weight"], eps)
            gate_up = lw["mlp.gate_proj.weight"]
            if lw.has("mlp.up_proj.weight"):
                gate, up = x @ gate_up.T, lw.linear("mlp.up_proj", x)
            else:  # the packed form of old checkpoints: gate rows first
                gate, up = torch.chunk(x @ gate_up.T, 2, dim=-1)
            h = h + lw.linear("mlp.down_proj", F.silu(gate) * up)
        head = embedding if c["tie_word_embeddings"] else w["lm_head.weight"]
        return rms(h, w["model.norm.weight"], eps) @ head.T

    return forward


def qwen3_5(config, tensors):
    c = config.get("text_config", config)
    prefix = "model.language_model." if "text_config" in config else "model."
    D, eps = c["hidden_size"], c.get("rms_norm_eps", 1e-6)
    interval = c.get("full_attention_interval", 4)
    kinds = c.get("layer_types") or ["full_attention" if (i + 1) % interval == 0 else
                                     "linear_attention" for i in range(c["num_hidden_layers"])]
    HK, HV = c["linear_num_key_heads"], c["linear_num_value_heads"]
    K, V = c["linear_key_head_dim"], c["linear_value_head_dim"]
    H, HA, hd = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    theta = c["rope_parameters"]["rope_theta"]
    rotary = int(hd * c["rope_parameters"].get("partial_rotary_factor", 0.25))

    def delta(w, x):
        qkv = w.conv("conv1d", w.linear("in_proj_qkv", x), F.silu)
        q, k, v = torch.split(qkv, [HK * K, HK * K, HV * V], dim=-1)
        q, k = (spread(l2(heads(y, HK)), HV // HK) for y in (q, k))
        g = -w["A_log"].exp() * F.softplus(w.linear("in_proj_a", x) + w["dt_bias"])
        beta = torch.sigmoid(w.linear("in_proj_b", x))
        o = rms(recurrence(q * K ** -0.5, k, heads(v, HV), g, beta), w["norm.weight"], eps)
        return w.linear("out_proj", (o * F.silu(heads(w.linear("in_proj_z", x), HV))).flatten(1))

    def attention(w, x, positions):
        both = heads(w.linear("q_proj", x), H)
        q, gate = both[..., :hd], both[..., hd:]
        k, v = (heads(w.linear(n, x), HA) for n in ("k_proj", "v_proj"))
        q, k = rms(q, 1 + w["q_norm.weight"], eps), rms(k, 1 + w["k_norm.weight"], eps)
        q, k = rope(q, positions, theta, rotary), rope(k, positions, theta, rotary)
        o = softmax_attention(q, spread(k, H // HA), spread(v, H // HA), hd ** -0.5)
        return w.linear("o_proj", (o * torch.sigmoid(gate)).flatten(1))

    def forward(ids):
        w = Weights(tensors)
        embedding = w[prefix + "embed_tokens.weight"]
        h = embedding[ids]
        for n, kind in enumerate(kinds):
            lw = w.sub(f"{prefix}layers.{n}")
            x = rms(h, 1 + lw["input_layernorm.weight"], eps)
            if kind == "full_attention":
                h = h + attention(lw.sub("self_attn"), x, torch.arange(len(ids)))
            else:
                h = h + delta(lw.sub("linear_attn"), x)
            x = rms(h, 1 + lw["post_attention_layernorm.weight"], eps)
            h = h + feed_forward(lw.sub("mlp"), x, {"type": "swiglu"})
        head = embedding if c.get("tie_word_embeddings") else w["lm_head.weight"]
        return rms(h, 1 + w[prefix + "norm.weight"], eps) @ head.T

    return forward
