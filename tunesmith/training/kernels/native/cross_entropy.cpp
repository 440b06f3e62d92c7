// Negative log-likelihood of the targets, whether the arg-max is the target, and the gradient by the logits, row by row.
//
// A row of logits (100 KB at 49,152 words in bfloat16) stays in the second-level cache over the three passes.

#include <cmath>

#include "parallel.h"
#include "simd.h"

namespace {

/// What is subtracted and scaled: logits x become cap tanh(x / cap), or stay as they are.
struct Cap {
    float cap;
    Floats operator()(Floats x) const { return cap > 0 ? all(cap) * tanh(x * all(1 / cap)) : x; }
    float operator()(float x) const { return cap > 0 ? _mm512_cvtss_f32((*this)(all(x))) : x; }
};

/// The row's largest logit; not-a-numbers may be passed over.
template <class E>
float row_max(const E* x, long V) {
    Floats a = all(-INFINITY), b = a;
    long v = 0;
    for (; v + 32 <= V; v += 32) {
        a = _mm512_max_ps(load(x + v), a);
        b = _mm512_max_ps(load(x + v + 16), b);
    }
    each16(V - v, [&](long i, auto k) {
        Floats rest = load(x + v + i, k);
        a = _mm512_max_ps(_mm512_mask_mov_ps(all(-INFINITY), first_lanes(V - v - i), rest), a);
    });
    return largest(_mm512_max_ps(a, b));
}

/// Sum over the row of e^(cap(x) - max).
template <class E, class Capped>
float row_sum(const E* x, long V, float max, const Capped& cap) {
    Floats a = all(0), b = a;
    auto power = [&](Floats logit) { return exp(cap(logit) - all(max)); };
    long v = 0;
    for (; v + 32 <= V; v += 32) {
        a += power(load(x + v));
        b += power(load(x + v + 16));
    }
    each16(V - v, [&](long i, auto k) { a += only(power(load(x + v + i, k)), k); });
    return sum(a + b);
}

/// Whether the target is the first of the largest; as in torch, a not-a-number is larger than any number.
template <class E>
bool is_first_max(const E* x, long V, long target) {
    long best = 0;
    for (long v = 1; v < V; v++) {
        float now = scalar(x[v]), then = scalar(x[best]);
        if (now > then || (std::isnan(now) && !std::isnan(then))) best = v;
    }
    return best == target;
}

/// Whether any of the first n is at least `max`.
template <class E>
bool any_reaches(const E* x, long n, float max) {
    Mask found = 0;
    each16(n, [&](long i, auto k) {
        found = Mask(found | (_mm512_cmp_ps_mask(load(x + i, k), all(max), _CMP_GE_OQ) & first_lanes(n - i)));
    });
    return found != 0;
}

// nll = log(sum e^x) - x[target]; gradient e^x / sum e^x - [v is the target], times 1 - (x / cap)².
template <class E>
void row_cross_entropy(E* x, long V, long target, Cap cap, bool gradient, float& nll, uint8_t& hit) {
    float raw_target = scalar(x[target]), raw_max = row_max(x, V);
    float max = cap(raw_max), at_target = cap(raw_target);
    auto identity = [](Floats logit) { return logit; };
    float total = cap.cap > 0 ? row_sum(x, V, max, cap) : row_sum(x, V, max, identity);
    if (std::isnan(total)) hit = is_first_max(x, V, target);
    else hit = raw_target == raw_max && !any_reaches(x, target, raw_max);
    const double loss = std::log(double(total)) - double(at_target - max);
    nll = float(loss);
    if (!gradient) return;
    Floats scale = all(1 / total), shift = all(max);
    float slope_target = 1;
    if (cap.cap > 0) {
        each16(V, [&](long i, auto k) {
            Floats c = cap(load(x + i, k)), u = c * all(1 / cap.cap);
            store(x + i, exp2_for<E>((c - shift) * all(LOG2E)) * scale * (all(1.0f) - u * u), k);
        });
        slope_target = 1 - (at_target / cap.cap) * (at_target / cap.cap);
    } else {
        each16(V, [&](long i, auto k) { store(x + i, exp2_for<E>((load(x + i, k) - shift) * all(LOG2E)) * scale, k); });
    }
    set(x + target, float(std::expm1(-loss)) * slope_target);
}

template <class E>
int cross_entropy(long threads, long N, long V, E* logits, const int64_t* targets, double cap, long gradient, float* nll, uint8_t* hits) {
    parallel_range(int(threads), N, [=](long begin, long end) {
        for (long n = begin; n < end; n++)
            row_cross_entropy(logits + n * V, V, targets[n], Cap{float(cap)}, gradient != 0, nll[n], hits[n]);
    });
    return 0;
}

}  // namespace

EXPORT(cross_entropy)
