// What is done to one row at a time: RMS norm, gated linear units, rotary positions. All are bound by memory.
//
// A row matrix is a pointer and the elements from one row to the next. Names as in kernels/__init__.py: T tokens, I features.

#include <initializer_list>

#include "parallel.h"
#include "simd.h"

namespace {

// out = h r w with r = 1 / sqrt(mean(h²) + eps).
template <class E>
int rms_norm(long threads, long T, long I, const E* h, long h_row, const float* w, double eps, E* out, long out_row, float* rstd) {
    parallel_range(int(threads), T, [=](long begin, long end) {
        for (long t = begin; t < end; t++) {
            const E* x = h + t * h_row;
            Floats squares = all(0);
            each16(I, [&](long i, auto k) {
                Floats v = load(x + i, k);
                squares = fma(v, v, squares);
            });
            float r = float(1 / __builtin_sqrt(double(sum(squares)) / double(I) + eps));
            each16(I, [&](long i, auto k) { store(out + t * out_row + i, load(x + i, k) * all(r) * load(w + i, k), k); });
            rstd[t] = r;
        }
    });
    return 0;
}

// With n = h r and g = w dout: dh += r (g - n mean(g n)).
template <class E>
int rms_norm_backward(long threads, long T, long I, const E* dout, long dout_row, const E* h, long h_row, const float* w,
                       const float* rstd, E* dh, long dh_row) {
    parallel_range(int(threads), T, [=](long begin, long end) {
        for (long t = begin; t < end; t++) {
            const E *d = dout + t * dout_row, *x = h + t * h_row;
            E* dx = dh + t * dh_row;
            Floats products = all(0);
            each16(I, [&](long i, auto k) { products = fma(load(d + i, k) * load(w + i, k), load(x + i, k), products); });
            Floats r = all(rstd[t]), along = all(float(double(sum(products)) / double(I))) * r * r;
            each16(I, [&](long i, auto k) {
                Floats g = load(d + i, k) * load(w + i, k) - load(x + i, k) * along;
                store(dx + i, fma(g, r, load(dx + i, k)), k);
            });
        }
    });
    return 0;
}

// An activation gives its value a(x) and its derivative.
template <class E>
struct Silu {  // x sigmoid(x)
    static Floats value(Floats x) { return x * sigmoid<E>(x); }
    static void both(Floats x, Floats& value, Floats& slope) {
        Floats s = sigmoid<E>(x);
        value = x * s;
        slope = fma(value, all(1.0f) - s, s);
    }
};

template <class E>
struct Gelu {  // x Phi(x)
    static Floats value(Floats x) {
        Floats cumulative, density;
        normal<E>(x, cumulative, density);
        return x * cumulative;
    }
    static void both(Floats x, Floats& value, Floats& slope) {
        Floats cumulative, density;
        normal<E>(x, cumulative, density);
        value = x * cumulative;
        slope = fma(x, density, cumulative);
    }
};

template <class E>
struct GeluTanh {  // x (1 + tanh(z)) / 2 = x sigmoid(2 z) with 2 z = a x + b x³
    static constexpr float a = 1.59576912160573071f, b = a * 0.044715f;
    static Floats twice(Floats x) { return x * fma(x * x, all(b), all(a)); }
    static Floats value(Floats x) { return x * sigmoid<E>(twice(x)); }
    static void both(Floats x, Floats& value, Floats& slope) {
        Floats s = sigmoid<E>(twice(x));
        value = x * s;
        slope = fma(value * (all(1.0f) - s), fma(x * x, all(3 * b), all(a)), s);
    }
};

// out = a(gate) up.
template <class Activation, class E>
int glu_by(long threads, long T, long F, const E* gate_up, long row, E* out, long out_row) {
    parallel_range(int(threads), T, [=](long begin, long end) {
        for (long t = begin; t < end; t++) {
            const E *gate = gate_up + t * row, *up = gate + F;
            each16(F, [&](long f, auto k) {
                for (const E* p : {gate, up}) fetch_ahead(p + f);
                store(out + t * out_row + f, Activation::value(load(gate + f, k)) * load(up + f, k), k);
            });
        }
    });
    return 0;
}

// dgate = dout up a'(gate), dup = dout a(gate).
template <class Activation, class E>
int glu_backward_by(long threads, long T, long F, const E* dout, long dout_row, const E* gate_up, long row, E* dgate_up, long d_row) {
    parallel_range(int(threads), T, [=](long begin, long end) {
        for (long t = begin; t < end; t++) {
            const E *d = dout + t * dout_row, *gate = gate_up + t * row, *up = gate + F;
            E *dgate = dgate_up + t * d_row, *dup = dgate + F;
            each16(F, [&](long f, auto k) {
                for (const E* p : {d, gate, up}) fetch_ahead(p + f);
                Floats value, slope, dy = load(d + f, k);
                Activation::both(load(gate + f, k), value, slope);
                store(dgate + f, dy * load(up + f, k) * slope, k);
                store(dup + f, dy * value, k);
            });
        }
    });
    return 0;
}

template <class E>
int glu(long threads, long activation, long T, long F, const E* gate_up, long row, E* out, long out_row) {
    auto* kernel = activation == 0 ? glu_by<Silu<E>, E> : activation == 1 ? glu_by<Gelu<E>, E> : glu_by<GeluTanh<E>, E>;
    return kernel(threads, T, F, gate_up, row, out, out_row);
}

template <class E>
int glu_backward(long threads, long activation, long T, long F, const E* dout, long dout_row, const E* gate_up, long row, E* dgate_up,
                 long d_row) {
    auto* kernel = activation == 0   ? glu_backward_by<Silu<E>, E>
                   : activation == 1 ? glu_backward_by<Gelu<E>, E>
                                     : glu_backward_by<GeluTanh<E>, E>;
    return kernel(threads, T, F, dout, dout_row, gate_up, row, dgate_up, d_row);
}

// (low, high) become (low cos - high sin, high cos + low sin); low and high are the halves of a head's first 2 `half` features.
template <class E>
int rope(long threads, long T, long H, long D, long half, E* x, long row, const float* cos, long cos_row, const float* sin,
          long sin_row, double sign) {
    parallel_range(int(threads), T, [=](long begin, long end) {
        for (long t = begin; t < end; t++) {
            prefetch(x + (t + 4) * row, row, 1, H * D);
            prefetch(cos + (t + 4) * cos_row, cos_row, 1, half);
            prefetch(sin + (t + 4) * sin_row, sin_row, 1, half);
            each16(half, [&](long i, auto k) {
                Floats c = load(cos + t * cos_row + i, k), s = load(sin + t * sin_row + i, k) * all(float(sign));
                for (long head = 0; head < H; head++) {
                    E *low = x + t * row + head * D + i, *high = low + half;
                    Floats a = load(low, k), b = load(high, k);
                    store(low, a * c - b * s, k);
                    store(high, b * c + a * s, k);
                }
            });
        }
    });
    return 0;
}

}  // namespace

EXPORT(rms_norm)
EXPORT(rms_norm_backward)
EXPORT(glu)
EXPORT(glu_backward)
EXPORT(rope)
