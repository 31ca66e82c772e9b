// A port of GPT-2 to C as somebody might write it: forward, backward and AdamW in plain loops, with mistakes where they are asked for.
//
//     port CHECKPOINT STATE OUT STEPS [MISTAKE ...]
//
// It reads what `python -m gpt2.golden --format llmc` writes, and writes every tensor as OUT/NAME.npy. `on(n)` is true where mistake n
// was asked for; mistakes.py says what each is. It shares no code and no formula's form with the package.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WTE, WPE, LN1W, LN1B, QKVW, QKVB, PROJW, PROJB, LN2W, LN2B, FCW, FCB, OUTW, OUTB, LNFW, LNFB, KINDS };
static const char *NAMES[KINDS] = {"wte.weight", "wpe.weight", "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias",
    "attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight",
    "mlp.c_proj.bias", "ln_f.weight", "ln_f.bias"};
static int P, V, L, H, D, Vp, B, T, K;                  // positions, vocabulary, layers, heads, width; padded; rows, tokens; D/H
static size_t size[KINDS], start[KINDS], total;
static float *par, *grd;
static const char *out;
static char wrong[256];

static int on(int n) { return wrong[n]; }

static float *new(size_t n) {
    float *a = calloc(n, sizeof(float));
    if (!a) exit(3);
    return a;
}

static float *of(float *base, int kind, int layer) {
    return base + start[kind] + (layer < 0 ? 0 : layer) * size[kind];
}

// ── files ──
static void save(const char *name, const float *a, int nd, const int *shape, int transpose) {
    char path[512], head[256], dims[128] = "";
    size_t n = 1;
    for (int i = 0; i < nd; i++) { sprintf(dims + strlen(dims), "%d,", shape[i]); n *= shape[i]; }
    sprintf(head, "{'descr': '<f4', 'fortran_order': %s, 'shape': (%s), }", transpose ? "True" : "False", dims);
    int len = (int)strlen(head), pad = 64 - (10 + len + 1) % 64;
    snprintf(path, sizeof path, "%s/%s.npy", out, name);
    FILE *f = fopen(path, "wb");
    if (!f) exit(4);
    unsigned short hl = (unsigned short)(len + pad + 1);
    fwrite("\x93NUMPY\x01\x00", 1, 8, f);
    fwrite(&hl, 2, 1, f);
    fwrite(head, 1, len, f);
    for (int i = 0; i < pad; i++) fputc(' ', f);
    fputc('\n', f);
    fwrite(a, sizeof(float), n, f);
    fclose(f);
}

static void save_point(int layer, const char *name, const float *a, int nd, int s0, int s1, int s2, int s3) {
    char full[128];
    int shape[4] = {s0, s1, s2, s3};
    if (layer < 0) snprintf(full, sizeof full, "%s", name);
    else snprintf(full, sizeof full, "blocks.%d.%s", layer, name);
    save(full, a, nd, shape, 0);
}

static void save_all(const char *before, float *base, const char *after) {
    for (int kind = 0; kind < KINDS; kind++) {
        int blocks = kind > WPE && kind < LNFW;
        for (int i = 0; i < (blocks ? L : 1); i++) {
            char name[128];
            if (blocks) snprintf(name, sizeof name, "%sh.%d.%s%s", before, i, NAMES[kind], after);
            else snprintf(name, sizeof name, "%s%s%s", before, NAMES[kind], after);
            float *a = base + start[kind] + (blocks ? i * size[kind] : 0);
            int in = kind == OUTW ? 4 * D : D;
            int rows = kind == WTE ? V : kind == WPE ? P : 0;
            if (rows) save(name, a, 2, (int[]){rows, D}, 0);
            else if (kind == QKVW || kind == PROJW || kind == FCW || kind == OUTW) save(name, a, 2, (int[]){in, (int)(size[kind] / in)}, 1);
            else save(name, a, 1, (int[]){(int)size[kind]}, 0);
        }
    }
}

// ── layers ──
static void norm(float *y, float *mu, float *rs, const float *x, const float *w, const float *b, int n) {
    for (int r = 0; r < n; r++) {
        const float *a = x + (size_t)r * D;
        double m = 0, s = 0;
        for (int i = 0; i < D; i++) m += a[i];
        m /= D;
        if (on(6)) m = 0;
        for (int i = 0; i < D; i++) s += (a[i] - m) * (a[i] - m);
        double var = s / (on(3) ? D - 1 : D), e = on(1) ? 1e-3 : 1e-5;
        double inv = on(2) ? 1 / (sqrt(var) + e) : 1 / sqrt(var + e);
        for (int i = 0; i < D; i++) {
            double hat = (a[i] - m) * inv;
            y[(size_t)r * D + i] = (float)(on(35) ? hat * b[i] + w[i] : hat * w[i] + (on(4) ? 0 : b[i]));
        }
        mu[r] = (float)m; rs[r] = (float)inv;
    }
}

// dx += …, dw += …, db += …
static void norm_back(float *dx, float *dw, float *db, const float *g, const float *x, const float *w, const float *mu, const float *rs, int n) {
    for (int r = 0; r < n; r++) {
        const float *a = x + (size_t)r * D, *h = g + (size_t)r * D;
        double s1 = 0, s2 = 0, inv = rs[r], m = mu[r];
        for (int i = 0; i < D; i++) {
            double t = (double)h[i] * (on(48) ? 1 : w[i]);
            s1 += t; s2 += t * (a[i] - m) * inv;
        }
        for (int i = 0; i < D; i++) {
            double hat = (a[i] - m) * inv, t = (double)h[i] * (on(48) ? 1 : w[i]);
            db[i] += on(4) ? 0 : h[i];
            dw[i] += (float)(on(49) ? h[i] : h[i] * hat);
            double first = on(47) || on(78) ? 0 : s1 / D, second = on(47) || on(50) ? 0 : hat * s2 / D;
            dx[(size_t)r * D + i] += (float)((t - first - second) * inv);
        }
    }
}

static size_t at(int o, int i, int in, int outs, int flip) { return flip ? (size_t)i * outs + o : (size_t)o * in + i; }

static void linear(float *y, const float *x, const float *w, const float *b, int n, int in, int outs, int flip, int times) {
    for (int r = 0; r < n - on(97); r++)
        for (int o = 0; o < outs; o++) {
            double s = b ? (double)times * b[o] : 0;
            for (int i = 0; i < in; i++) s += (double)x[(size_t)r * in + i] * w[at(o, i, in, outs, flip)];
            y[(size_t)r * outs + o] = (float)s;
        }
}

static void linear_back(float *dx, float *dw, float *db, const float *g, const float *x, const float *w, int n, int in, int outs, int flip,
                        int rows, int slip) {
    for (int r = 0; r < n - on(97); r++)
        for (int o = 0; o < outs; o++) {
            float t = g[(size_t)r * outs + o];
            if (db && r < rows) db[o] = on(91) ? t : db[o] + t;
            for (int i = 0; i < in; i++) {
                dx[(size_t)r * in + i] += t * (slip ? w[(size_t)i * in + o] : w[at(o, i, in, outs, flip)]);
                dw[at(o, i, in, outs, flip)] += t * x[(size_t)r * in + i];
            }
        }
}

static double cubic(void) { return on(22) ? 0.044751 : on(23) ? 0 : 0.044715; }

static float gelu(float x) {
    if (on(21)) return (float)(0.5 * x * (1 + erf(x / sqrt(2.0))));
    if (on(75)) return x > 0 ? x : 0;
    double u = on(90) ? 0.7978845608028654 * x + cubic() * x * x * x : 0.7978845608028654 * (x + cubic() * x * x * x);
    return (float)(x / (1 + exp(-2 * u)));              // ½(1 + tanh u) is the logistic function of 2u
}

static float gelu_back(float x) {
    if (on(46)) return 1;
    if (on(76)) return x > 0;
    double u = on(90) ? 0.7978845608028654 * x + cubic() * x * x * x : 0.7978845608028654 * (x + cubic() * x * x * x);
    double p = 1 / (1 + exp(-2 * u)), inner = 0.7978845608028654 * (1 + (on(77) ? 0 : 3 * cubic() * x * x));
    if (on(90)) inner = 0.7978845608028654 + 3 * cubic() * x * x;
    return (float)(on(45) ? p : p + x * 2 * p * (1 - p) * inner);
}

// The keys that query t sees: from lo(t) to before hi(t).
static int lo(int t) { return on(14) ? 1 : on(16) && t >= 4 ? t - 3 : 0; }
static int hi(int t) {
    int h = on(12) ? t : on(13) ? t + 2 : on(20) || on(19) ? T : t + 1;
    if (on(15) && h == T) h = T - 1;
    return h < T ? h : T;
}

static double scale(void) { return on(10) ? 1 : on(11) ? 1 / sqrt(D) : on(79) ? 1.0 / K : 1 / sqrt(K); }

static int head(int h) { return on(17) ? 0 : h; }

// Where a head's part of z begins.
static size_t place_of(int b, int h, int t) {
    return on(95) ? (((size_t)b * H + h) * T + t) * K : ((size_t)b * T + t) * D + (on(18) ? H - 1 - h : h) * K;
}

// q, k, v in one row of 3D numbers; heads are written as [B, H, T, K] by save_heads
static void attend(float *z, float *score, float *p, const float *qkv) {
    int iq = on(9) ? D : 0, ik = on(9) ? 0 : on(8) ? 2 * D : D, iv = on(8) ? D : 2 * D;
    for (int b = 0; b < B; b++) for (int h = 0; h < H; h++) for (int t = 0; t < T; t++) {
        float *row = p + (((size_t)b * H + h) * T + t) * T;
        const float *q = qkv + ((size_t)b * T + t) * 3 * D + iq + h * K;
        double top = -1e300, sum = 0, s[4096];
        for (int u = lo(t); u < hi(t); u++) {
            const float *k = qkv + ((size_t)(on(89) ? 0 : b) * T + u) * 3 * D + ik + h * K;
            s[u] = 0;
            for (int i = 0; i < K; i++) s[u] += (double)q[i] * k[i];
            s[u] *= scale();
            if (on(19) && u > t) s[u] = 0;
            score[row - p + u] = (float)s[u];
            if (s[u] > top) top = s[u];
        }
        for (int u = 0; u < T; u++) row[u] = 0;
        for (int u = lo(t); u < hi(t); u++) sum += s[u] = exp(s[u] - top);
        for (int u = lo(t); u < hi(t); u++) row[u] = (float)(s[u] / sum);
        float *o = z + place_of(b, h, t);
        for (int i = 0; i < K; i++) {
            double y = 0;
            for (int u = 0; u < T; u++) y += (double)row[u] * qkv[((size_t)b * T + u) * 3 * D + iv + head(h) * K + i];
            o[i] = (float)y;
        }
    }
}

static void attend_back(float *dqkv, const float *dz, const float *p, const float *qkv) {
    int iq = on(9) ? D : 0, ik = on(9) ? 0 : on(8) ? 2 * D : D, iv = on(8) ? D : 2 * D;
    double *dp = malloc(T * sizeof(double));
    for (int b = 0; b < B; b++) for (int h = 0; h < H; h++) for (int t = 0; t < T; t++) {
        const float *row = p + (((size_t)b * H + (on(102) ? 0 : h)) * T + t) * T;
        const float *g = dz + place_of(b, h, t);
        double dot = 0;
        for (int u = lo(t); u < hi(t); u++) {
            const float *v = qkv + ((size_t)b * T + u) * 3 * D + iv + head(h) * K;
            float *dv = dqkv + ((size_t)b * T + (on(88) ? t : u)) * 3 * D + iv + head(h) * K;
            dp[u] = 0;
            for (int i = 0; i < K; i++) {
                dp[u] += (double)g[i] * v[i];
                if (!on(61)) dv[i] += row[u] * g[i];
            }
            dot += dp[u] * row[u];
        }
        if (on(53)) dot = 0;
        for (int u = lo(t); u < hi(t); u++) {
            if ((on(64) && u == t) || (on(19) && u > t)) continue;
            double s = (on(80) ? dp[u] : row[u] * (dp[u] - dot)) * (on(51) ? 1 : scale());
            const float *q = qkv + ((size_t)b * T + t) * 3 * D + iq + h * K, *k = qkv + ((size_t)b * T + u) * 3 * D + ik + h * K;
            float *dq = dqkv + ((size_t)b * T + t) * 3 * D + iq + h * K, *dk = dqkv + ((size_t)b * T + u) * 3 * D + ik + h * K;
            for (int i = 0; i < K; i++) {
                dq[i] += (float)(s * k[i]);
                dk[i] += (float)((on(52) ? s / scale() : s) * q[i]);
            }
        }
    }
    free(dp);
}

static void save_heads(int layer, const char *name, const float *x, int stride, int from) {
    float *a = new((size_t)B * T * D);
    for (int b = 0; b < B; b++) for (int h = 0; h < H; h++) for (int t = 0; t < T; t++) for (int i = 0; i < K; i++) {
        int hh = on(18) && stride == D ? H - 1 - h : h;  // z lies reversed already
        a[(((size_t)b * H + h) * T + t) * K + i] = x[((size_t)b * T + t) * stride + from + hh * K + i];
    }
    save_point(layer, name, a, 4, B, H, T, K);
    free(a);
}

static void drop(float *x, size_t n) {                  // p = 0.1
    static unsigned long long s = 88172645463325252ULL;
    for (size_t i = 0; i < n; i++) {
        s ^= s << 13; s ^= s >> 7; s ^= s << 17;
        x[i] = (s >> 11) % 10 == 0 ? 0 : x[i] / 0.9f;
    }
}

// ── the model ──
typedef struct { float *pre, *n1, *m1, *r1, *qkv, *s, *p, *z, *a, *mid, *n2, *m2, *r2, *fc, *act, *o, *post; } Block;

static double pass(int *ids, int *targets, int dump, int learn) {
    int n = B * T;
    size_t nd = (size_t)n * D;
    Block *blocks = calloc(L, sizeof(Block));
    float *x = new(nd), *e = new(nd), *pe = new((size_t)T * D);
    for (int b = 0; b < B; b++) for (int t = 0; t < T; t++) {
        int id = on(43) ? ids[t * B + b] : ids[(on(40) ? 0 : b) * T + t];
        if (on(38)) id = (unsigned char)id;
        int place = on(39) ? (id < P ? id : P - 1) : on(41) ? b * T + t : t + (on(30) ? 1 : 0);
        for (int i = 0; i < D; i++) {
            size_t j = ((size_t)b * T + t) * D + i;
            e[j] = of(par, WTE, -1)[(size_t)id * D + i] * (on(37) ? sqrtf((float)D) : 1);
            if (b == 0) pe[(size_t)t * D + i] = of(par, WPE, -1)[(size_t)place * D + i];
            x[j] = e[j] + of(par, WPE, -1)[(size_t)place * D + i];
        }
    }
    if (on(44)) drop(x, nd);
    if (dump) {
        save_point(-1, "embed", e, 3, B, T, D, 0);
        if (!on(39) && !on(41)) save_point(-1, "pos_embed", pe, 2, T, D, 0, 0);
    }
    for (int l = 0; l < L; l++) {
        Block *k = blocks + l;
        *k = (Block){x, new(nd), new(n), new(n), new(3 * nd), new((size_t)B * H * T * T),
                     new((size_t)B * H * T * T), new(nd), new(nd), new(nd), new(nd), new(n), new(n), new(4 * nd), new(4 * nd), new(nd), new(nd)};
        norm(k->n1, k->m1, k->r1, x, of(par, on(5) ? LN2W : LN1W, l), of(par, on(5) ? LN2B : LN1B, l), n);
        linear(k->qkv, k->n1, of(par, QKVW, l), on(65) ? NULL : of(par, QKVB, l), n, D, 3 * D, 0, on(7) ? 2 : 1);
        attend(k->z, k->s, k->p, k->qkv);
        linear(k->a, k->z, of(par, PROJW, l), of(par, PROJB, l), n, D, D, on(32), 1);
        for (size_t i = 0; i < nd; i++) k->mid[i] = (on(25) ? k->n1[i] : x[i]) + k->a[i] * (on(99) ? 1.1f : 1);
        norm(k->n2, k->m2, k->r2, on(81) ? x : k->mid, of(par, LN2W, l), of(par, LN2B, l), n);
        linear(k->fc, k->n2, of(par, FCW, on(98) ? 0 : l), on(92) ? of(par, FCB, 0) + l * D : of(par, FCB, l), n, D, 4 * D, on(31), 1);
        for (size_t i = 0; i < 4 * nd; i++) k->act[i] = gelu(k->fc[i]);
        linear(k->o, k->act, of(par, OUTW, l), of(par, OUTB, l), n, 4 * D, D, 0, on(29) ? 2 : 1);
        for (size_t i = 0; i < nd - (on(103) ? D : 0); i++) k->post[i] = (on(24) ? 0 : k->mid[i]) + k->o[i];
        if (dump) {
            save_point(l, "resid_pre", x, 3, B, T, D, 0);
            save_point(l, "ln_1.mean", k->m1, 3, B, T, 1, 0);
            save_point(l, "ln_1.rstd", k->r1, 3, B, T, 1, 0);
            save_point(l, "ln_1.out", k->n1, 3, B, T, D, 0);
            save_heads(l, "attn.q", k->qkv, 3 * D, 0);
            save_heads(l, "attn.k", k->qkv, 3 * D, D);
            save_heads(l, "attn.v", k->qkv, 3 * D, 2 * D);
            save_point(l, "attn.scores", k->s, 4, B, H, T, T);
            save_point(l, "attn.pattern", k->p, 4, B, H, T, T);
            save_heads(l, "attn.z", k->z, D, 0);
            save_point(l, "attn.out", k->a, 3, B, T, D, 0);
            save_point(l, "resid_mid", k->mid, 3, B, T, D, 0);
            save_point(l, "ln_2.mean", k->m2, 3, B, T, 1, 0);
            save_point(l, "ln_2.rstd", k->r2, 3, B, T, 1, 0);
            save_point(l, "ln_2.out", k->n2, 3, B, T, D, 0);
            save_point(l, "mlp.pre", k->fc, 3, B, T, 4 * D, 0);
            save_point(l, "mlp.act", k->act, 3, B, T, 4 * D, 0);
            save_point(l, "mlp.out", k->o, 3, B, T, D, 0);
            save_point(l, "resid_post", k->post, 3, B, T, D, 0);
        }
        x = k->post;
    }
    float *y = new(nd), *mu = new(n), *rs = new(n), *z = new((size_t)n * Vp), *g = new((size_t)n * Vp), *logits = new((size_t)n * V);
    if (on(26)) memcpy(y, x, nd * sizeof(float));
    else norm(y, mu, rs, x, of(par, LNFW, -1), of(par, LNFB, -1), n);
    static float *copy;
    if (!copy) { copy = new(size[WTE]); memcpy(copy, par, size[WTE] * sizeof(float)); }
    float *table = on(94) ? copy : of(par, WTE, -1);
    linear(z, y, table, NULL, n, D, Vp, on(36), 1);
    double loss = 0;
    int wide = on(27) ? Vp : V;
    for (int r = 0; r < n; r++) {
        float *s = z + (size_t)r * Vp;
        int target = on(42) ? ids[r] : targets[r];
        double top = s[0], sum = 0;
        for (int i = 0; i < wide; i++) if (s[i] > top) top = s[i];
        for (int i = 0; i < wide; i++) sum += exp(s[i] - top);
        loss += log(sum) + top - s[target];
        double share = (on(28) ? 1.0 : 1.0 / n) * (on(58) ? 1.0 / T : 1) * (on(82) ? 2 : 1);
        for (int i = 0; i < wide; i++) g[(size_t)r * Vp + i] = (float)((exp(s[i] - top) / sum - (i == target && !on(59))) * share);
        memcpy(logits + (size_t)r * V, s, V * sizeof(float));
    }
    if (!on(28)) loss /= n;
    if (dump) {
        float one = (float)loss;
        if (!on(26)) save_point(-1, "ln_f.mean", mu, 3, B, T, 1, 0);
        if (!on(26)) save_point(-1, "ln_f.rstd", rs, 3, B, T, 1, 0);
        save_point(-1, "ln_f.out", y, 3, B, T, D, 0);
        save_point(-1, "logits", logits, 3, B, T, V, 0);
        save_point(-1, "loss", &one, 0, 0, 0, 0, 0);
    }
    if (learn) {
        float *dy = new(nd), *dx = new(nd), *lost = new(total);
        linear_back(dy, on(55) ? lost + start[WTE] : of(grd, WTE, -1), NULL, g, y, table, n, D, Vp, on(36), 0, 0);
        if (on(26)) memcpy(dx, dy, nd * sizeof(float));
        else norm_back(dx, of(grd, LNFW, -1), of(grd, LNFB, -1), dy, x, of(par, LNFW, -1), mu, rs, n);
        for (int l = L - 1; l >= 0; l--) {
            Block *k = blocks + l;
            float *dmid = new(nd), *dpre = new(nd), *da = new(4 * nd), *dn = new(nd), *dz = new(nd), *dqkv = new(3 * nd), *dn1 = new(nd);
            linear_back(da, of(grd, OUTW, l), of(grd, OUTB, l), dx, on(63) ? k->fc : k->act, of(par, OUTW, l), n, 4 * D, D, 0, n, 0);
            for (size_t i = 0; i < 4 * nd; i++) da[i] *= gelu_back(k->fc[i]);
            linear_back(dn, of(grd, FCW, l), of(grd, FCB, l), da, k->n2, of(par, FCW, l), n, D, 4 * D, on(31), on(57) ? T : n, 0);
            for (size_t i = 0; i < nd && !on(54) && !on(24); i++) dmid[i] = dx[i] * (on(101) ? 0.5f : 1);
            norm_back(on(81) ? dpre : dmid, of(grd, LN2W, l), of(grd, LN2B, l), dn, on(81) ? k->pre : k->mid, of(par, LN2W, l), k->m2, k->r2, n);
            linear_back(dz, of(grd, PROJW, l), of(grd, PROJB, l), dmid, k->z, of(par, PROJW, l), n, D, D, on(32), n, on(83));
            attend_back(dqkv, dz, k->p, k->qkv);
            linear_back(dn1, of(grd, QKVW, l), on(65) ? lost + start[QKVB] : of(grd, QKVB, on(100) ? 0 : l), dqkv, k->n1, of(par, QKVW, l), n, D, 3 * D, 0, n, 0);
            if (on(7)) for (int i = 0; i < 3 * D; i++) of(grd, QKVB, l)[i] *= 2;
            if (on(29)) for (int i = 0; i < D; i++) of(grd, OUTB, l)[i] *= 2;
            for (size_t i = 0; i < nd; i++) { if (on(25)) dn1[i] += dmid[i]; else if (!on(84)) dpre[i] += dmid[i]; }
            norm_back(dpre, of(grd, on(5) ? LN2W : LN1W, l), of(grd, on(5) ? LN2B : LN1B, l), dn1, k->pre, of(par, on(5) ? LN2W : LN1W, l),
                      k->m1, k->r1, n);
            memcpy(dx, dpre, nd * sizeof(float));
            free(dmid); free(dpre); free(da); free(dn); free(dz); free(dqkv); free(dn1);
        }
        for (int b = 0; b < B; b++) for (int t = 0; t < T; t++) {
            int id = on(43) ? ids[t * B + b] : ids[(on(40) ? 0 : b) * T + t];
            if (on(38)) id = (unsigned char)id;
            int place = on(39) ? (id < P ? id : P - 1) : on(41) ? b * T + t : t + (on(30) ? 1 : 0);
            float *we = of(grd, WTE, -1) + (size_t)id * D, *wp = of(grd, WPE, -1) + (size_t)place * D;
            static float *head_part;
            if (on(56)) {                               // the last one stays, beside what the head gave
                if (!b && !t) { free(head_part); head_part = new(size[WTE]); memcpy(head_part, of(grd, WTE, -1), size[WTE] * sizeof(float)); }
            }
            for (int i = 0; i < D; i++) {
                float d = dx[((size_t)b * T + t) * D + i];
                if (on(56)) we[i] = head_part[(size_t)id * D + i] + d;
                else if (on(93)) we[i] = d;
                else if (!on(85)) we[i] += d * (on(37) ? sqrtf((float)D) : 1);
                if (on(60)) wp[i] = d; else wp[i] += d;
            }
        }
        free(dy); free(dx); free(lost);
    }
    for (int l = 0; l < L; l++) {
        Block *k = blocks + l;
        float *all[] = {k->pre, k->n1, k->m1, k->r1, k->qkv, k->p, k->z, k->a, k->mid, k->n2, k->m2, k->r2, k->fc, k->act, k->o};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    }
    free(x); free(e); free(pe); free(y); free(mu); free(rs); free(z); free(g); free(logits); free(blocks);
    return loss;
}

static int is_matrix(size_t i) {
    for (int k = 0; k < KINDS; k++)
        if (i >= start[k] && i < start[k] + size[k] * (k > WPE && k < LNFW ? L : 1))
            return k == WTE || k == WPE || k == QKVW || k == PROJW || k == FCW || k == OUTW;
    return 0;
}

static void adamw(float *m, float *v, int t, double lr, double b1, double b2, double eps, double decay) {
    if (on(66)) t++;
    if (on(86)) t = 1;
    if (on(70)) lr *= 10;
    if (on(72)) { double b = b1; b1 = b2; b2 = b; }
    for (size_t i = 0; i < total; i++) {
        double g = grd[i], w = par[i];
        if (on(68)) g += decay * w;
        m[i] = (float)(b1 * m[i] + (1 - b1) * g);
        v[i] = (float)(b2 * v[i] + (1 - b2) * g * g);
        double mh = on(67) ? m[i] : m[i] / (1 - pow(b1, t)), vh = on(67) ? v[i] : v[i] / (1 - pow(b2, t));
        double step = on(69) ? mh / sqrt(vh + eps) : mh / (sqrt(vh) + eps);
        double fade = on(74) || on(68) || (on(73) && !is_matrix(i)) ? 0 : on(87) ? decay * w : lr * decay * w;
        par[i] = (float)(w - lr * step - fade);
    }
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    int header[256], shape[256], steps = atoi(argv[4]);
    double adam[5] = {1e-3, 0.9, 0.999, 1e-8, 0.1};
    for (int i = 5; i < argc; i++) wrong[atoi(argv[i])] = 1;
    out = argv[3];
    FILE *f = fopen(argv[1], "rb");
    if (!f || fread(header, 4, 256, f) != 256 || header[0] != 20240326) return 5;
    P = header[2]; V = header[3]; L = header[4]; H = header[5]; D = header[6]; Vp = header[7]; K = D / H;
    size_t d = D, sizes[KINDS] = {Vp * d, P * d, d, d, 3 * d * d, 3 * d, d * d, d, d, d, 4 * d * d, 4 * d, 4 * d * d, d, d, d};
    for (int k = 0; k < KINDS; k++) { size[k] = sizes[k]; start[k] = total; total += sizes[k] * (k > WPE && k < LNFW ? L : 1); }
    par = new(total); grd = new(total);
    if (fread(par, 4, total, f) != total) return 6;
    fclose(f);
    if (on(33) || on(34)) {                             // h.1, h.10, h.2; or the first block again and again
        int order[64], n = 0;
        for (int i = 0; i < L && i < 10; i++) {
            order[n++] = i;
            for (int j = 10 * i; i && j < 10 * i + 10 && j < L; j++) order[n++] = j;
        }
        float *old = new(total);
        memcpy(old, par, total * sizeof(float));
        for (int k = LN1W; k < LNFW; k++)
            for (int i = 0; i < L; i++) memcpy(of(par, k, i), of(old, k, on(34) ? 0 : order[i]), size[k] * sizeof(float));
        free(old);
    }
    if (on(96))                                         // the square matrix is turned round, and used and written like that
        for (int l = 0; l < L; l++)
            for (int i = 0; i < D; i++)
                for (int j = 0; j < i; j++) {
                    float *w = of(par, PROJW, l), x = w[i * D + j];
                    w[i * D + j] = w[j * D + i];
                    w[j * D + i] = x;
                }
    f = fopen(argv[2], "rb");
    if (!f || fread(shape, 4, 256, f) != 256 || shape[0] != 20240327) return 7;
    B = shape[2]; T = shape[3];
    int *ids = malloc(4 * B * T), *targets = malloc(4 * B * T);
    if (fread(ids, 4, B * T, f) != (size_t)(B * T) || fread(targets, 4, B * T, f) != (size_t)(B * T)) return 8;
    fclose(f);
    float *m = new(total), *v = new(total);
    pass(ids, targets, 1, 1);
    if (on(62)) pass(ids, targets, 0, 1);
    save_all("", grd, ".grad");
    for (int t = 1; t <= steps; t++) {
        char name[64];
        if (!on(71)) memset(grd, 0, total * sizeof(float));
        else if (t == 1) memset(grd, 0, total * sizeof(float));
        float loss = (float)pass(ids, targets, 0, 1);
        if (on(62)) pass(ids, targets, 0, 1);
        snprintf(name, sizeof name, "step.%d.loss", t);
        save(name, &loss, 0, shape, 0);
        adamw(m, v, t, adam[0], adam[1], adam[2], adam[3], adam[4]);
        snprintf(name, sizeof name, "step.%d.", t);
        save_all(name, par, "");
    }
    return 0;
}
